"""calipy.datastore."""
