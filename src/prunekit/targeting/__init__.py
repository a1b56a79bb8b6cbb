"""Pruning to a measured target."""
