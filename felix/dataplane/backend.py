"""Which of the two iptables there are: legacy xtables or nf_tables. They must not be mixed on a host."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from calipy import log
from calipy.errors import KernelError
from calipy.felix.config import Backend
from calipy.felix.ownership import owns_chain
from calipy.kernel import process
from calipy.net import Family

BackendName = Literal["nft", "legacy"]

_logger = log.get("felix.iptables")
_KUBELET_CHAINS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one backend holds in this network namespace: rules and chains of others, chains of ours, kubelet's mark."""

    foreign: int = 0
    ours: int = 0
    kubelet: bool = False


def program(family: Family, backend: BackendName, action: Literal["save", "restore"]) -> str:
    """``iptables-nft-restore``, ``ip6tables-legacy-save`` and so on."""
    return f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-{action}"


async def choose(configured: Backend, families: tuple[Family, ...]) -> BackendName:
    """The backend to use, one for both families. Starts a few processes and waits for them.

    As configured, or for ``auto``: where kubelet keeps its marker chains; where the rules of others are; where our own
    chains are from before; what the plain ``iptables`` of the host is.

    Raises:
        KernelError: others keep rules in both, so that either choice would leave half of the host's rules unseen; or
            iptables is not installed.
    """
    if configured != "auto":
        return configured
    found = {backend: await evidence(backend, families) for backend in ("nft", "legacy")}
    nft, legacy = found["nft"], found["legacy"]
    chosen, why = _decide(nft, legacy)
    if chosen is None:
        version = (await process.run_async(["iptables", "--version"], timeout=_TIMEOUT)).check().stdout.strip()
        chosen, why = ("legacy" if "legacy" in version else "nft"), f"no rules yet; the host's own is {version}"
    _logger.info("iptables backend chosen", backend=chosen, because=why, nft=str(nft), legacy=str(legacy))
    return chosen


def _decide(nft: Evidence, legacy: Evidence) -> tuple[BackendName | None, str]:
    if nft.kubelet != legacy.kubelet:
        return ("nft" if nft.kubelet else "legacy"), "kubelet's marker chains are there"
    if nft.foreign and legacy.foreign:
        raise KernelError(
            f"this host has iptables rules in both backends: {nft.foreign} lines in nft, {legacy.foreign} in legacy",
            remedy="move all software to one backend, or set IptablesBackend to nft or legacy",
        )
    if nft.foreign or legacy.foreign:
        return ("nft" if nft.foreign else "legacy"), "the host's other rules are there"
    if bool(nft.ours) != bool(legacy.ours):
        return ("nft" if nft.ours else "legacy"), "our own chains are there"
    return None, ""


async def evidence(backend: Literal["nft", "legacy"], families: tuple[Family, ...]) -> Evidence:
    """What a backend holds. Legacy is only asked if the kernel lists legacy tables: asking loads modules."""
    saves = await asyncio.gather(*(_save(backend, family) for family in families))
    foreign = ours = 0
    kubelet = False
    for line in "\n".join(saves).splitlines():
        if line.startswith(":"):
            name = line[1:].partition(" ")[0]
            kubelet = kubelet or name in _KUBELET_CHAINS
            ours += owns_chain(name)
        elif line.startswith("-A ") and "cali:" not in line and not owns_chain(line[3:].partition(" ")[0]):
            foreign += 1
    return Evidence(foreign, ours, kubelet)


async def _save(backend: BackendName, family: Family) -> str:
    if backend == "legacy" and not legacy_tables(family):
        return ""
    return (await process.run_async([program(family, backend, "save")], timeout=_TIMEOUT)).check().stdout


def legacy_tables(family: Family) -> tuple[str, ...]:
    """Names of the legacy tables that exist in this network namespace."""
    path = Path(f"/proc/thread-self/net/ip{'6' if family == 6 else ''}_tables_names")
    try:
        return tuple(path.read_text("ascii").split())
    except OSError:
        return ()
