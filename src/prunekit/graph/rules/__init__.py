"""The operator rules, one file per family."""
