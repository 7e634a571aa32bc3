"""Searches for task weights compared: replayed on tables of finetunes, and real ones."""
