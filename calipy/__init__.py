"""calipy."""
