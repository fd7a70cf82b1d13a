"""Everything that touches torch, a GPU or a process."""
