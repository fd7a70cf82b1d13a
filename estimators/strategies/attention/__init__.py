"""The kernel of attention: one law a file."""
