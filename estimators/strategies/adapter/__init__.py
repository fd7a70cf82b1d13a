"""What is trained: one law a file."""
