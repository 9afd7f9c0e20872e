"""calipy.cli."""
