"""The exact objective and all that solvers ask of it: here sums over samples are formed, and not in solvers."""
