"""The rules of all families: rendered from what is known, written by the iptables edge.

On a kernel without our rules the default drop for workload interfaces goes in first (``guard``). The fast path of
``cali-FORWARD`` is there where the kernel knows its match.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from calipy import log
from calipy.felix import telemetry
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane import backend
from calipy.felix.dataplane.backend import BackendName
from calipy.felix.dataplane.iptables import IPTables, WriteReport
from calipy.felix.dataplane.nftables import NftablesReader
from calipy.felix.delta import Table
from calipy.felix.messages import Changes, HostEndpoint
from calipy.felix.render import syntax
from calipy.felix.render.renderer import Renderer
from calipy.felix.render.static import TABLES
from calipy.net import Family

_logger = log.get("felix.rules")
_IPV6: Final = Path("/proc/sys/net/ipv6")


def families(config: FelixConfig) -> tuple[Family, ...]:
    """The IP versions that the kernel and the parameters want rules of."""
    return (4, 6) if config.ipv6_support and _IPV6.exists() else (4,)


def in_force(config: FelixConfig) -> bool:
    """Whether forwarded packets meet rules of ours, by a glance at nf_tables. A few netlink exchanges.

    No where the legacy backend is in use, which cannot be asked in passing.

    Raises:
        KernelError: the kernel has no nf_tables.
    """
    reader = NftablesReader()
    try:
        return all(
            any(reader.rule_hashes(family, "filter", "FORWARD") or ())
            and any(reader.rule_hashes(family, "filter", "cali-FORWARD") or ())
            for family in families(config)
        )
    finally:
        reader.close()


class Ruleset:
    """Rules in the process's network namespace. Calls do not overlap.

    Attributes:
        backend: which iptables they are written with.
        refused: place → why the kernel did not take it, as of the last ``write``.
    """

    def __init__(self) -> None:
        """Nothing is read, rendered or written before ``build``."""
        self.backend: BackendName = "nft"
        self.refused: dict[str, str] = {}
        self._renderers: dict[Family, Renderer] = {}
        self._iptables: IPTables | None = None
        self._first_write = True
        self._fast_path: bool | None = None

    def close(self) -> None:
        """Close the edge. The kernel's state stays as it is."""
        if self._iptables is not None:
            self._iptables.close()

    @property
    def edge(self) -> IPTables:
        """Who reads and writes; another one after a ``build`` that changed backend or families."""
        assert self._iptables is not None
        return self._iptables

    async def build(self, config: FelixConfig, known: Changes, hosts: Mapping[str, HostEndpoint]) -> None:
        """Render everything anew for these parameters; what differs is written by the next ``write``.

        Args:
            config: the parameters.
            known: all that the graph has said.
            hosts: interface → the host endpoint that governs it.

        Raises:
            KernelError: iptables is missing or unusable, or others keep rules in both backends. All is as it was.
        """
        wanted = families(config)
        chosen = await backend.choose(config.iptables_backend, wanted)
        self._renderers = {family: Renderer(family, config) for family in wanted}
        for renderer in self._renderers.values():
            renderer.update(known)
            renderer.set_hosts(hosts)
            renderer.set_fast_path(possible=bool(self._fast_path))
        tables = {family: renderer.tables for family, renderer in self._renderers.items()}
        if self._iptables is not None and chosen == self.backend and tables.keys() == self._iptables.families:
            self._iptables.set_tables(tables)
            return
        self.close()
        self.backend, self._iptables = chosen, IPTables(chosen, tables)
        self._first_write = True
        self._fast_path = None

    def update(self, changes: Changes) -> None:
        """Render what a change touches. Cost follows that."""
        for renderer in self._renderers.values():
            renderer.update(changes)

    def set_hosts(self, hosts: Mapping[str, HostEndpoint]) -> None:
        """Interface → the host endpoint that governs it."""
        for renderer in self._renderers.values():
            renderer.set_hosts(hosts)

    async def guard(self) -> None:
        """Have workload interfaces drop as long as nothing is known; what an earlier run left in force stays.

        Raises:
            KernelError: as for ``write``.
        """
        guarded = await self.edge.guard()
        _logger.info("workload interfaces drop until policy is known", written=len(guarded.changed))

    async def prepare(self) -> None:
        """Before the first write: read the tables, and have the fast path in them if the kernel knows its match."""
        if not self._first_write:
            return
        self._set_fast_path(possible=True)
        await self.edge.read()
        if self._fast_path is None:
            in_force = self.edge.holds("filter", "cali-FORWARD")  # then the kernel knows it
            self._fast_path = in_force or await self.edge.understands(syntax.from_group(4))
        self._set_fast_path(possible=self._fast_path)

    async def write(self) -> WriteReport:
        """Write what is dirty. Cost follows that. Our chains go from the other backend after the first write.

        Raises:
            KernelError: the kernel or iptables fails as a whole; what it only refuses is in the report.
        """
        written = await self.edge.write()
        if self._first_write:
            self._first_write = False
            await self._sweep_other_backend()
        self.refused = written.refused
        return written

    def forgive(self) -> None:
        """Have the next ``write`` try again what was refused."""
        if self.refused:
            for table in self._tables():
                table.forgive()

    def refusal(self, chains: set[str]) -> str:
        """What the kernel refused of these chains and all that they lead to; "" for nothing."""
        if not self.refused:
            return ""
        used: set[str] = set()
        for table in self._tables():
            used |= table.reachable(chains)
        return next((f"{place}: {why}" for place, why in self.refused.items() if place.split()[-1] in used), "")

    def measure(self) -> None:
        """Set the gauges. Linear in the chains."""
        for family, renderer in self._renderers.items():
            telemetry.show_rules(family, renderer.tables.values())

    def _tables(self) -> list[Table]:
        return [table for renderer in self._renderers.values() for table in renderer.tables.values()]

    def _set_fast_path(self, *, possible: bool) -> None:
        for renderer in self._renderers.values():
            renderer.set_fast_path(possible=possible)

    async def _sweep_other_backend(self) -> None:
        """Remove our chains from the iptables backend that is not in use, where an earlier run left them."""
        other: BackendName = "legacy" if self.backend == "nft" else "nft"
        present = tuple(self._renderers)
        if not (await backend.evidence(other, present)).ours:
            return
        swept = IPTables(other, {family: {name: Table(name) for name in TABLES} for family in present})
        try:
            report = await swept.write()
            _logger.info("swept our chains from the other backend", backend=other, chains=len(report.changed))
        finally:
            swept.close()
