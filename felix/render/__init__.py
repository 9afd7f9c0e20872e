"""felix.render."""
