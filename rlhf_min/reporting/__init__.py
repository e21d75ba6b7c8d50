"""Evaluation, run folders, plots, diagnosis and the report page; skip it on a first reading."""
