# Makes the node rr4 a reflector as soon as it has registered.
until calipy patch node rr4 -p '{"metadata": {"labels": {"rr": "yes"}}, "spec": {"bgp": {"routeReflectorClusterID": "244.0.0.4"}}}'
do sleep 0.5; done
