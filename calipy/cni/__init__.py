"""calipy.cni."""
