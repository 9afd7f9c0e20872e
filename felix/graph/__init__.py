"""The calculation graph: which policies, sets, endpoints, pools and hosts concern this node."""
