"""calipy.node."""
