"""Leaving the lab: export and the parity chain."""
