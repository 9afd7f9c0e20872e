"""Columns of ``calipy get`` by kind: calicoctl's headings and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from calipy.datastore.goscalars import print_float
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.kinds.policy import LabelSelector
from calipy.errors import InvalidInputError

Cell: TypeAlias = Callable[[Any], str]
WIDTH: Final = 80
"""Longer lists are cut."""

DEFAULT_AS: Final = 64512


def go_float(value: float | None) -> str:
    """Go's ``%v`` of a float or nil: ``1e+06``, ``20.5``, ``<nil>``."""
    return "<nil>" if value is None else print_float(value)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _joined(items: Sequence[str]) -> str:
    return _cut(",".join(items))


def _bool(value: bool | None) -> str:
    return "-" if value is None else str(value).lower()


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _pairs(labels: dict[str, str]) -> str:
    return _cut(",".join(f"{name}={value}" for name, value in sorted(labels.items())))


def _pod_selector(selector: LabelSelector) -> str:
    """Go's print of a Kubernetes label selector."""
    labels = "".join(f"{name}: {value}," for name, value in sorted(selector.match_labels.items()))
    expressions = "".join(
        f"LabelSelectorRequirement{{Key:{one.key},Operator:{one.operator},Values:[{' '.join(one.values)}],}},"
        for one in selector.match_expressions
    )
    return (
        f"&LabelSelector{{MatchLabels:map[string]string{{{labels}}},"
        f"MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )


def _name(resource: Resource[Any, Any]) -> str:
    return resource.metadata.name


def _asn(resource: Resource[Any, Any], default_as: int) -> str:
    bgp = resource.spec.bgp
    return "" if bgp is None else f"({default_as})" if bgp.as_number is None else str(bgp.as_number)


_POLICY: Final[dict[str, Cell]] = {
    "NAME": _name,
    "TIER": lambda r: r.spec.tier,
    "ORDER": lambda r: go_float(r.spec.order),
    "SELECTOR": lambda r: r.spec.selector,
}

CELLS: Final[dict[str, dict[str, Cell]]] = {
    "BGPConfiguration": {
        "NAME": _name,
        "LOGSEVERITY": lambda r: r.spec.log_severity_screen,
        "MESHENABLED": lambda r: _bool(r.spec.node_to_node_mesh_enabled),
        "ASNUMBER": lambda r: _or_dash(r.spec.as_number),
    },
    "BGPFilter": {
        "NAME": _name,
        "NUMEXPORTV4": lambda r: str(len(r.spec.export_v4)),
        "NUMIMPORTV4": lambda r: str(len(r.spec.import_v4)),
        "NUMEXPORTV6": lambda r: str(len(r.spec.export_v6)),
        "NUMIMPORTV6": lambda r: str(len(r.spec.import_v6)),
    },
    "BGPPeer": {
        "NAME": _name,
        "PEERIP": lambda r: r.spec.peer_ip,
        "NODE": lambda r: r.spec.node or r.spec.node_selector or "(global)",
        "ASN": lambda r: str(r.spec.as_number),
    },
    "CalicoNodeStatus": {"NAME": _name, "NODE": lambda r: r.spec.node, "CLASSES": lambda r: _joined(r.spec.classes)},
    "ClusterInformation": {
        "NAME": _name,
        "CLUSTERGUID": lambda r: r.spec.cluster_guid,
        "CLUSTERTYPE": lambda r: r.spec.cluster_type,
        "CALICOVERSION": lambda r: r.spec.calico_version,
        "DATASTOREREADY": lambda r: _bool(r.spec.datastore_ready),
    },
    "FelixConfiguration": {"NAME": _name},
    "GlobalNetworkPolicy": _POLICY,
    "GlobalNetworkSet": {"NAME": _name, "NETS": lambda r: _joined(r.spec.nets)},
    "HostEndpoint": {
        "NAME": _name,
        "NODE": lambda r: r.spec.node,
        "INTERFACE": lambda r: r.spec.interface_name,
        "IPS": lambda r: _joined(r.spec.expected_ips),
        "PROFILES": lambda r: _joined(r.spec.profiles),
    },
    "IPAMConfiguration": {
        "NAME": _name,
        "STRICTAFFINITY": lambda r: _bool(r.spec.strict_affinity),
        "AUTOALLOCATEBLOCKS": lambda r: _bool(r.spec.auto_allocate_blocks),
        "MAXBLOCKSPERHOST": lambda r: str(r.spec.max_blocks_per_host),
    },
    "IPPool": {
        "NAME": _name,
        "CIDR": lambda r: r.spec.cidr,
        "NAT": lambda r: _bool(r.spec.nat_outgoing),
        "IPIPMODE": lambda r: r.spec.ipip_mode,
        "VXLANMODE": lambda r: r.spec.vxlan_mode,
        "DISABLED": lambda r: _bool(r.spec.disabled),
        "DISABLEBGPEXPORT": lambda r: _bool(r.spec.disable_bgp_export),
        "SELECTOR": lambda r: r.spec.node_selector,
        "ASSIGNMENTMODE": lambda r: r.spec.assignment_mode or "",
    },
    "IPReservation": {"NAME": _name, "CIDRS": lambda r: _joined(r.spec.reserved_cidrs)},
    "KubeControllersConfiguration": {"NAME": _name},
    "NetworkPolicy": _POLICY,
    "NetworkSet": {"NAME": _name, "NETS": lambda r: _joined(r.spec.nets)},
    "Node": {
        "NAME": _name,
        "ASN": lambda r: _asn(r, DEFAULT_AS),
        "IPV4": lambda r: r.spec.bgp.ipv4_address if r.spec.bgp else "",
        "IPV6": lambda r: r.spec.bgp.ipv6_address if r.spec.bgp else "",
    },
    "Profile": {"NAME": _name, "LABELS": lambda r: _pairs(r.spec.labels_to_apply)},
    "StagedGlobalNetworkPolicy": _POLICY,
    "StagedKubernetesNetworkPolicy": {"NAME": _name, "PODSELECTOR": lambda r: _pod_selector(r.spec.pod_selector)},
    "StagedNetworkPolicy": _POLICY,
    "Tier": {"NAME": _name, "ORDER": lambda r: go_float(r.spec.order)},
    "WorkloadEndpoint": {
        "NAME": _name,
        "WORKLOAD": lambda r: r.spec.workload or r.spec.pod,
        "NODE": lambda r: r.spec.node,
        "NETWORKS": lambda r: _joined(r.spec.ip_networks),
        "INTERFACE": lambda r: r.spec.interface_name,
        "PROFILES": lambda r: _joined(r.spec.profiles),
        "NATS": lambda r: _joined([nat.external_ip for nat in r.spec.ip_nats]),
    },
}
"""Every column a kind has; the wide table shows all of them."""

NARROW: Final[dict[str, tuple[str, ...]]] = {
    "CalicoNodeStatus": ("NAME", "NODE"),
    "GlobalNetworkPolicy": ("NAME", "TIER"),
    "GlobalNetworkSet": ("NAME",),
    "HostEndpoint": ("NAME", "NODE"),
    "IPAMConfiguration": ("NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS"),
    "IPPool": ("NAME", "CIDR", "SELECTOR"),
    "IPReservation": ("NAME",),
    "NetworkPolicy": ("NAME", "TIER"),
    "NetworkSet": ("NAME",),
    "Node": ("NAME",),
    "Profile": ("NAME",),
    "StagedGlobalNetworkPolicy": ("NAME", "TIER"),
    "StagedKubernetesNetworkPolicy": ("NAME",),
    "StagedNetworkPolicy": ("NAME", "TIER"),
    "WorkloadEndpoint": ("WORKLOAD", "NODE", "NETWORKS", "INTERFACE"),
}
"""Columns of the usual table, where it does not show all."""


def columns_of(kind: str, form: str) -> list[str]:
    """Headings of a table: ``table``, ``wide`` or ``custom-columns=A,B``.

    Raises:
        InvalidInputError: a heading that the kind does not have.
    """
    if form.startswith("custom-columns="):
        wanted = form.partition("=")[2].split(",")
        for heading in wanted:
            if heading not in CELLS[kind] and heading != "NAMESPACE":
                raise InvalidInputError(
                    "no such column", field="custom-columns", value=heading, remedy=f"one of {', '.join(CELLS[kind])}"
                )
        return wanted
    return list(CELLS[kind]) if form == "wide" else list(NARROW.get(kind, CELLS[kind]))


def rows_of(
    kind: str, columns: Sequence[str], resources: Sequence[Resource[Any, Any]], *, default_as: int = DEFAULT_AS
) -> list[list[str]]:
    """The texts of a table. ``default_as`` is what a node without an AS number has."""
    cells: dict[str, Cell] = {**CELLS[kind], "NAMESPACE": lambda r: r.metadata.namespace}
    if kind == "Node":
        cells["ASN"] = lambda r: _asn(r, default_as)
    return [[cells[heading](resource) for heading in columns] for resource in resources]
