"""What a person or a program reads of a plan, a price or a catalogue."""
