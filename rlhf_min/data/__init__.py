"""Preference pairs, prompts and their order; a first reading needs only preferences.py."""
