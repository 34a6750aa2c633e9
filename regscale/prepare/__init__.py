"""Preparation of data: each command is a module here with `add_arguments` and `run`."""
