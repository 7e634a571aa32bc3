"""Three text tasks, a head each, on one MiniLM body."""
