"""Is a text of four domains positive? One head for all."""
