"""calipy.datastore.etcdpb."""
