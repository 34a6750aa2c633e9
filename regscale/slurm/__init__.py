"""The life of a run under Slurm: its tasks, what follows a job's end, and where a run is.

What the batch script calls imports no torch: a login node answers at once.
"""
