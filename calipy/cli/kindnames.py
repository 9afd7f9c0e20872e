"""What people call kinds on the command line. Source: calicoctl's resource manager."""

from __future__ import annotations

from typing import Final

from calipy.datastore.keys import NAMESPACED
from calipy.datastore.resources import KINDS
from calipy.errors import InvalidInputError

_SHORT: Final[dict[str, tuple[str, ...]]] = {
    "BGPConfiguration": ("bgpconfig", "bgpconf"),
    "BGPFilter": ("bgpf", "bf"),
    "BGPPeer": ("bgpp", "bp"),
    "CalicoNodeStatus": ("nodestatus", "caliconodestatus"),
    "ClusterInformation": ("clusterinfo", "cinfo"),
    "FelixConfiguration": ("felixconfig", "fconfig"),
    "GlobalNetworkPolicy": ("gnp", "globalpolicy"),
    "GlobalNetworkSet": ("gnetset", "globalnetset"),
    "HostEndpoint": ("hep", "hostep"),
    "IPAMConfiguration": ("ipamconfig",),
    "IPPool": ("pool", "ipp"),
    "IPReservation": ("reservation", "ipres"),
    "KubeControllersConfiguration": ("kubecontrollersconfig", "kcconfig"),
    "NetworkPolicy": ("np", "pol", "policy"),
    "NetworkSet": ("netset",),
    "Node": ("no",),
    "Profile": ("pro",),
    "StagedGlobalNetworkPolicy": ("sgnp",),
    "StagedKubernetesNetworkPolicy": ("sknp", "skpol", "stagedkubernetespolicy"),
    "StagedNetworkPolicy": ("snp", "spol", "stagedpolicy"),
    "Tier": (),
    "WorkloadEndpoint": ("wep", "workloadep"),
}


def _all_names() -> dict[str, str]:
    names = {}
    for kind, short in _SHORT.items():
        for name in (kind.lower(), KINDS[kind].plural, *short):
            names[name] = kind
            names.setdefault(name + "s", kind)
            if name.endswith("y"):
                names.setdefault(name[:-1] + "ies", kind)
    return names


KIND_BY_NAME: Final = _all_names()


def refuse_namespace(kind: str, namespace: str | None) -> None:
    """Raise ``InvalidInputError`` if there is one, for a kind that has none."""
    if namespace and kind not in NAMESPACED:
        raise InvalidInputError(f"{kind} objects live in none", field="--namespace", value=namespace)


def kind_of(text: str) -> str:
    """``ippools``, ``IPPool``, ``pool`` → ``IPPool``.

    Raises:
        InvalidInputError: no such kind.
    """
    kind = KIND_BY_NAME.get(text.lower())
    if kind is None:
        raise InvalidInputError("no such kind", field="KIND", value=text, remedy=f"one of {', '.join(sorted(KINDS))}")
    return kind
