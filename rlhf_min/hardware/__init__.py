"""The same numbers with less time or memory: skip this folder on a first reading."""
