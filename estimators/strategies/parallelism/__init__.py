"""How a job spreads over GPUs: one law a file."""
