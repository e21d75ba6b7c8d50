"""Studies: one file per question, `python -m experiments.NAME`; docs/RESULTS.md shows the answers.

Every run is kept by its settings in rows/NAME.jsonl, so an interrupted study goes on where it was,
and tables and figures are made again from the rows without a rerun (`--tables`).
"""
