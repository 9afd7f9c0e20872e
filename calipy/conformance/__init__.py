"""calipy.conformance."""
