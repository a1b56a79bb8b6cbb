"""Evidence, slices, paired statistics and gates."""
