"""Deciding which units go: goals, exact selection, the pruning plan."""
