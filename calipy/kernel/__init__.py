"""calipy.kernel."""
