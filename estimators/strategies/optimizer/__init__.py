"""The optimizer step: one law a file."""
