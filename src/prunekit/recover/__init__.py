"""Winning quality back by training."""
