"""Configurations of transformers' architectures, small and randomly initialised."""
