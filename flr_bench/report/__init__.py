"""Tables and figures, from the store and nothing else."""
