"""The calculation graph: which policies, sets, endpoints, pools and hosts concern this node."""

from calipy.felix.graph.graph import Graph

__all__ = ["Graph"]
