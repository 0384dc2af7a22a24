"""The exact objective and all that solvers ask of it; with `sampling` the only room that sums over samples."""
