"""The formulas: pure functions of tensors and numbers, without models and files."""
