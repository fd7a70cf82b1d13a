"""How the frozen base is stored and multiplied: one law a file."""
