"""The formulas: pure functions of tensors and numbers.  A first reader begins here."""
