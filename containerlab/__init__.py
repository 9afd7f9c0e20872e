"""containerlab."""
