"""What the evaluator says about cells of network-policy cases."""

from __future__ import annotations

from calipy.conformance.netpol_case import UPLINK, Cluster, parse_probe
from calipy.policy.evaluate import EPHEMERAL_PORT, Verdict, evaluate
from calipy.policy.snapshot import Snapshot


def snapshot_of(cluster: Cluster) -> Snapshot:
    """A cluster as the evaluator takes it.

    Raises:
        InvalidInputError: an object that the API would refuse.
    """
    objects = ((resource.key, resource) for resource in cluster.resources())
    return Snapshot(objects, endpoint_to_host=cluster.endpoint_to_host, uplink=UPLINK)


def verdict_of(snapshot: Snapshot, cluster: Cluster, probe: str, source: str, destination: str) -> Verdict:
    """The evaluator's verdict on one cell; ``snapshot`` is that of the cluster."""
    wanted = parse_probe(probe)
    return evaluate(
        snapshot,
        cluster.addresses(source)[wanted.family],
        cluster.addresses(destination)[wanted.family],
        wanted.protocol,
        source_port=EPHEMERAL_PORT if wanted.source_port is None else wanted.source_port,
        destination_port=wanted.port,
        icmp=wanted.icmp,
    )
