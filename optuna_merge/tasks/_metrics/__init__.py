"""Metrics over a data set, each with the standard error that comes from the finite data."""
