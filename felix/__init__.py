"""felix."""
