"""Scores of generated pictures."""
