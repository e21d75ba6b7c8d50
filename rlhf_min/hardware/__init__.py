"""The same numbers with less time or memory, safe files, checks of numbers: skip it at first."""
