"""What an engine can hold and sustain."""
