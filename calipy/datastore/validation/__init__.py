"""What Calico's client refuses to write, and so do we.

``check`` is called on a resource whose defaults are filled in. Reading is another matter: whatever others stored is
read (``codec``), however odd. Source: Calico ``libcalico-go/lib/validator/v3`` and the CRD schemas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from calipy.datastore import gojson
from calipy.datastore.kinds.meta import NoStatus, Resource
from calipy.datastore.resources import KINDS
from calipy.datastore.validation import bgp, endpoints, felix, metadata, policy, pools, schema
from calipy.errors import InvalidInputError

_SPEC_CHECKS: dict[str, Callable[[Resource[Any, Any]], None]] = {
    "BGPConfiguration": bgp.check_configuration,
    "BGPFilter": bgp.check_filter,
    "BGPPeer": bgp.check_peer,
    "CalicoNodeStatus": endpoints.check_node_status,
    "FelixConfiguration": felix.check_configuration,
    "GlobalNetworkPolicy": policy.check_policy,
    "GlobalNetworkSet": policy.check_network_set,
    "HostEndpoint": endpoints.check_host_endpoint,
    "IPPool": pools.check_pool,
    "IPReservation": pools.check_reservation,
    "KubeControllersConfiguration": felix.check_kube_controllers,
    "NetworkPolicy": policy.check_policy,
    "NetworkSet": policy.check_network_set,
    "Node": endpoints.check_node,
    "Profile": policy.check_profile,
    "StagedGlobalNetworkPolicy": policy.check_policy,
    "StagedKubernetesNetworkPolicy": policy.check_staged_kubernetes,
    "StagedNetworkPolicy": policy.check_policy,
    "Tier": policy.check_tier,
    "WorkloadEndpoint": endpoints.check_workload_endpoint,
}


_METADATA_LISTS: Final = {
    "ownerReferences": frozenset({"apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"}),
    "managedFields": frozenset({
        "manager", "operation", "apiVersion", "time", "fieldsType", "fieldsV1", "subresource",
    }),
}  # fmt: skip
"""Members of Kubernetes' lists in metadata, which are kept as they are."""


def check_document(document: dict[str, Any], kind: str) -> None:
    """Refuse what only a file tells, not the resource read from it: whether an empty member is there.

    Raises:
        InvalidInputError: names the field.
    """
    if KINDS[kind].status is NoStatus and "status" in document:
        raise InvalidInputError("status: no such field", remedy=f"remove it; {kind} has none")
    metadata_of = document.get("metadata")
    for name, known in _METADATA_LISTS.items():
        entries = metadata_of.get(name) if isinstance(metadata_of, dict) else None
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            for unknown in sorted(set(entry) - known) if isinstance(entry, dict) else ():
                raise InvalidInputError(f"metadata.{name}[{index}].{unknown}: no such field", remedy="remove it")
    spec = document.get("spec")
    for path in gojson.missing_members(KINDS[kind].spec, spec, "spec"):
        raise InvalidInputError("must be given", field=path, value=None)
    if isinstance(spec, dict) and spec.get("stagedAction") == "Delete":
        for name, value in spec.items():
            if isinstance(value, list) and name != "types":
                raise InvalidInputError(
                    "a staged deletion has no lists, not even empty ones", field=f"spec.{name}", value=value
                )


def check(resource: Resource[Any, Any]) -> None:
    """Refuse what must not be written, by the resource alone.

    What needs other resources (overlap of pools, existence of a tier or a filter) is the client's.

    Raises:
        InvalidInputError: names the field, the value and the remedy.
    """
    metadata.check(resource)
    if resource.kind != "Profile":
        schema.check(resource.spec, "spec")
    spec_check = _SPEC_CHECKS.get(resource.kind)
    if spec_check is not None:
        spec_check(resource)
