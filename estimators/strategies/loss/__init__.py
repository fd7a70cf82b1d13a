"""The output head and the loss: one law a file."""
