"""Which units stand or fall together: trace, index labels, operator rules, groups."""
