"""felix.dataplane."""
