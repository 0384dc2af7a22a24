"""The report of a compression as one page that needs nothing else."""
