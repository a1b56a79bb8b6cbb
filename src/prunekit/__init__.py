"""Prunes trained PyTorch models to a measured target and proves what it did."""

__version__ = "0.1.0"
