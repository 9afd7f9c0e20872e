"""felix.graph."""
