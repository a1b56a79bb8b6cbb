"""Which units stand or fall together: trace, index labels, operator rules, groups."""

from prunekit.graph.describe import describe as describe
from prunekit.graph.groups import Groups as Groups
from prunekit.graph.groups import find_groups as find_groups
from prunekit.graph.trace import Graph as Graph
from prunekit.graph.trace import trace as trace

__all__ = ["Graph", "Groups", "describe", "find_groups", "trace"]
