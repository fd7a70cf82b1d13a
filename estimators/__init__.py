"""What things are and what they cost. Pure: the standard library only, never torch."""
