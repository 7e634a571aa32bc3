"""Digits on which two of four tasks disagree: labels in conflict, one head for all."""
