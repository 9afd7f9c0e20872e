"""Structs of Calico's kinds, by group."""
