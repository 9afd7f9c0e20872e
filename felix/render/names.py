"""Names that Felix gives to what it creates in the kernel: chains, ip sets. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final, Literal

from calipy.felix.messages import PolicyID
from calipy.net import Family

MAX_CHAIN: Final = 28
MAX_SET: Final = 31

ANY_INTERFACE: Final = "any-interface-at-all"
"""In place of an interface's name: those that nothing else is said about. No interface can have so long a name."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:+@=,-]+")

Direction = Literal["ingress", "egress"]

SHORT_KINDS: Final = {
    "NetworkPolicy": "np",
    "GlobalNetworkPolicy": "gnp",
    "KubernetesNetworkPolicy": "knp",
    "KubernetesClusterNetworkPolicy": "kcnp",
    "StagedNetworkPolicy": "snp",
    "StagedGlobalNetworkPolicy": "sgnp",
    "StagedKubernetesNetworkPolicy": "sknp",
}


def chain_name(prefix: str, suffix: str) -> str:
    """Chain name of at most 28 characters for ``suffix`` under ``prefix``.

    Short names are used as they are; long ones become ``prefix`` + ``_`` + a piece of the SHA-256 of the suffix. A name
    of exactly 28 characters whose suffix starts with ``_`` is hashed as well, so that no given name can look like a
    hashed one (libcalico-go/lib/hash/unique_id.go). Beyond Felix, so is a name with characters that could be read as
    anything else than part of a name: the datastore is not the place to write rules in.
    """
    suffix = suffix or "_"
    whole = prefix + suffix
    fits = len(whole) < MAX_CHAIN or (len(whole) == MAX_CHAIN and not suffix.startswith("_"))
    if fits and _PLAIN.fullmatch(suffix):
        return whole
    digest = base64.urlsafe_b64encode(hashlib.sha256(suffix.encode()).digest()).decode()
    return f"{prefix}_{digest[: MAX_CHAIN - 1 - len(prefix)]}"


def set_name(family: Family, set_id: str) -> str:
    """Kernel name of an ip set: ``cali40`` or ``cali60`` and the id, cut to 31 characters."""
    return f"cali{family}0{set_id}"[:MAX_SET]


def policy_chain(policy: PolicyID, direction: Direction) -> str:
    """``cali-pi-np/ns1/web`` (ingress) or ``cali-po-gnp/base`` (egress), hashed when too long."""
    short = SHORT_KINDS.get(policy.kind, policy.kind.lower())
    parts = (short, policy.namespace, policy.name) if policy.namespace else (short, policy.name)
    return chain_name("cali-pi-" if direction == "ingress" else "cali-po-", "/".join(parts))


def profile_chain(profile: str, direction: Direction) -> str:
    """``cali-pri-kns.ns1`` (ingress) or ``cali-pro-kns.ns1`` (egress)."""
    return chain_name("cali-pri-" if direction == "ingress" else "cali-pro-", profile)


def workload_chain(interface: str, direction: Direction) -> str:
    """``cali-tw-<if>`` for traffic to the workload (ingress), ``cali-fw-<if>`` for traffic from it (egress)."""
    return chain_name("cali-tw-" if direction == "ingress" else "cali-fw-", interface)


def host_chain(interface: str, direction: Direction, *, forward: bool = False) -> str:
    """``cali-th-<if>`` for what leaves by a host's interface (egress), ``cali-fh-<if>`` for what comes in by it
    (ingress); ``cali-thfw-<if>`` and ``cali-fhfw-<if>`` for what the host forwards.
    """
    prefix = "cali-th" if direction == "egress" else "cali-fh"
    return chain_name(f"{prefix}fw-" if forward else f"{prefix}-", interface)


def group_chain(selector: str, direction: Direction, policies: tuple[PolicyID, ...]) -> str:
    """Chain of consecutive policies with one selector; equal groups share it, whichever endpoint they apply to."""
    lines = [selector, "inbound" if direction == "ingress" else "outbound", str(len(policies))]
    lines += [f"{{Name: {p.name}, Namespace: {p.namespace}, Kind: {p.kind}}}" for p in policies]
    digest = hashlib.sha3_224("".join(f"{line}\n" for line in lines).encode()).digest()
    uid = base64.urlsafe_b64encode(digest).decode()[:20]
    return ("cali-gi-" if direction == "ingress" else "cali-go-") + uid
