"""Small nets, one per pattern, with the groups that a careful reader finds in them by hand."""
