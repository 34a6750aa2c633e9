"""Commands that judge runs and pictures."""
