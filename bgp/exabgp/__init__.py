"""bgp.exabgp."""
