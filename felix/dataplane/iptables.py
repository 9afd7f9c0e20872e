"""The iptables edge: reads tables, writes differences, verifies what it wrote.

* One restore process per family and flush carries all tables; each table is one transaction.
* The whole of a table is read at the start and when somebody else may have written, never before a write.
* After a write the chains it touched are read back. nf_tables answers that for single chains. After very large writes,
  and with the legacy backend, only reading everything would do: that is left to the caller (``unverified``), who has
  more urgent things to do first.
* A rule that the kernel refuses would block its whole table: its chain is replaced by one that drops, and reported.
  Where the kernel does not say which rule that is (the legacy backend), the chains are written in ever smaller parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import KeysView
from dataclasses import dataclass, field
from typing import Final

from calipy import log
from calipy.errors import KernelError
from calipy.felix.dataplane import programs
from calipy.felix.dataplane.backend import BackendName, program
from calipy.felix.dataplane.nftables import NftablesReader
from calipy.felix.dataplane.refusals import culprit
from calipy.felix.delta import Actual, Difference, Plan, Table, compare, parse_save, plan, trial
from calipy.felix.render.static import TABLES, TableName
from calipy.kernel.process import Completed
from calipy.metrics import REGISTRY
from calipy.net import Family

_logger = log.get("felix.iptables")

_SAVES: Final = REGISTRY.counter("felix_iptables_save_calls", "Calls of iptables-save.")
_SAVE_ERRORS: Final = REGISTRY.counter("felix_iptables_save_errors", "Calls of iptables-save that failed.")
_RESTORES: Final = REGISTRY.counter("felix_iptables_restore_calls", "Calls of iptables-restore.")
_RESTORE_ERRORS: Final = REGISTRY.counter("felix_iptables_restore_errors", "Calls of iptables-restore that failed.")
_LINES: Final = REGISTRY.counters(
    "felix_iptables_lines_executed", "Lines given to iptables-restore.", "ip_version", "table"
)

_ATTEMPTS: Final = 10
_FIRST_DELAY: Final = 0.001
_LOCK_WAIT: Final = 10
_MANY_CHAINS: Final = 64
"""More chains than this are not read back one by one."""


@dataclass(slots=True)
class _Since:
    """Our own writes since a reading began: what it says of these chains is out of date."""

    touched: set[tuple[Family, str, str]] = field(default_factory=set)
    transactions: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """All tables as they were read, and the generation before that."""

    tables: dict[Family, dict[str, Actual]]
    generation: int
    since: _Since


@dataclass(slots=True)
class WriteReport:
    """What one write did.

    Attributes:
        changed: chains and hooks that differed, as they were found.
        refused: ``table chain`` → why the kernel did not take it.
    """

    changed: list[Difference] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class IPTables:
    """Both families' tables in the process's network namespace."""

    def __init__(self, backend: BackendName, tables: dict[Family, dict[TableName, Table]]) -> None:
        """Nothing is read or written yet.

        Args:
            backend: nft or legacy.
            tables: desired state; its owner changes it between calls.

        ``unverified`` is True after a write that has not been read back; ``read`` does it.
        """
        self.backend = backend
        self._tables = tables
        self._actual: dict[Family, dict[TableName, Actual]] = {}
        self._reader = NftablesReader() if backend == "nft" else None
        self._generation = 0
        self._since = _Since()
        self.unverified = False

    @property
    def families(self) -> KeysView[Family]:
        """IP versions that have tables."""
        return self._tables.keys()

    def close(self) -> None:
        """Close the netlink socket; nothing in the kernel changes."""
        if self._reader:
            self._reader.close()

    def set_tables(self, tables: dict[Family, dict[TableName, Table]]) -> None:
        """Exchange the desired state as a whole; what differs from the kernel becomes dirty."""
        self._tables = tables
        for family, of_family in tables.items():
            for name, table in of_family.items():
                if family in self._actual:
                    table.dirty |= compare(table, self._actual[family][name])

    def others_wrote(self) -> bool:
        """Whether anybody but us changed the ruleset since the last read. The legacy backend cannot tell: False."""
        return self._reader is not None and self._reader.generation() != self._generation

    async def read(self) -> list[Difference]:
        """Read all tables; what differs becomes dirty. Linear in the rules; waits for a process per family.

        Returns:
            Differences in what was not waiting to be written anyway: drift. Empty at the first read.

        Raises:
            KernelError: the tables cannot be read.
        """
        return self.adopt(await self.begin_reading())

    async def begin_reading(self) -> Reading:
        """Read all tables and change nothing here: may run beside ``write``, so that nobody has to wait for it.

        Raises:
            KernelError: the tables cannot be read.
        """
        since = self._since = _Since()
        self.unverified = False
        generation = self._reader.generation() if self._reader else 0
        families = tuple(self._tables)
        tables = await asyncio.gather(*(self._save(family) for family in families))
        return Reading(dict(zip(families, tables, strict=True)), generation, since)

    def adopt(self, reading: Reading) -> list[Difference]:
        """Take a reading as what the kernel holds, except for what we have written meanwhile. As for ``read``."""
        if reading.since is not self._since or reading.tables.keys() != self._tables.keys():
            return []  # a later reading is under way, or other tables are wanted by now
        self._generation = (reading.generation + reading.since.transactions) & 0xFFFFFFFF
        drift: list[Difference] = []
        for family, tables in reading.tables.items():
            for of_family, table, name in reading.since.touched:
                if of_family == family and family in self._actual:
                    _carry_over(self._actual[family][_table_name(table)], tables.setdefault(table, Actual()), name)
            drift += self._adopt_family(family, tables)
        return drift

    async def guard(self) -> WriteReport:
        """Write only what is missing altogether: on an empty kernel that is everything desired, where our rules are in
        place nothing. For the time before anything is known: what an earlier run left in force must stay as it is.

        Raises:
            KernelError: as for ``write``.
        """
        await self.read()
        report = WriteReport()
        await asyncio.gather(*(self._write_family(family, report, only_missing=True) for family in self._tables))
        return report

    def holds(self, table: TableName, chain: str) -> bool:
        """Whether the kernel had the chain as desired, in all families, when it was read."""
        for family, tables in self._tables.items():
            wanted = tables[table].content(chain)
            if wanted is None or self._actual[family][table].chains.get(chain) != wanted.hashes:
                return False
        return True

    async def understands(self, match: str) -> bool:
        """Whether iptables and the kernel know a match, asked with a chain that exists for a moment.

        Waits for a process; two transactions.
        """
        chain = "cali-probe"
        asking = ["*filter", f":{chain} - -", f"-A {chain} {match}", "COMMIT"]
        tidying = ["*filter", f"-F {chain}", f"-X {chain}", "COMMIT"]
        done = await self._run(next(iter(self._tables)), [*asking, *tidying])
        if done.returncode:
            _logger.warning("iptables lacks a match", match=match, error=" ".join(done.stderr.split()))
            return False
        self._count(2)
        return True

    async def write(self) -> WriteReport:
        """Write what is dirty, all families at once. Cost follows what is dirty.

        Raises:
            KernelError: it did not succeed after ten attempts; nothing half-applied within a table.
        """
        if len(self._actual) < len(self._tables):
            await self.read()
        report = WriteReport()
        await asyncio.gather(*(self._write_family(family, report) for family in self._tables))
        for family, of_family in self._tables.items():
            for table in of_family.values():
                for name, reason in table.refused.items():
                    report.refused[f"ipv{family} {table.name} {name}"] = reason
        return report

    async def _save(self, family: Family) -> dict[str, Actual]:
        hooks: dict[str, tuple[str, ...]] = {name: tuple(table.hooks) for name, table in self._tables[family].items()}
        saved = await programs.run([program(family, self.backend, "save")], calls=_SAVES, errors=_SAVE_ERRORS)
        try:
            return await asyncio.to_thread(parse_save, saved.check().stdout + saved.stderr, hooks)
        except ValueError as error:
            _SAVE_ERRORS.inc()
            raise KernelError(
                f"cannot read the iptables rules: {error}", remedy="remove what was added to these tables with nft"
            ) from error

    def _adopt_family(self, family: Family, read: dict[str, Actual]) -> list[Difference]:
        tables = self._tables[family]
        first = family not in self._actual
        drift: list[Difference] = []
        actual: dict[TableName, Actual] = {}
        for name in TABLES:
            table, found = tables[name], read.get(name, Actual())
            actual[name] = found
            waiting = frozenset(table.dirty)
            table.dirty |= compare(table, found)
            if not first:
                drift += [d for d in plan(table, found).differences if d.name not in waiting]
        self._actual[family] = actual
        return drift

    async def _write_family(self, family: Family, report: WriteReport, *, only_missing: bool = False) -> None:
        delay = _FIRST_DELAY
        suspect: tuple[str, str] | None = None
        error = ""
        for attempt in range(_ATTEMPTS):
            tables, actual = self._tables[family], self._actual[family]
            plans = [plan(tables[name], actual[name], only_missing=only_missing) for name in TABLES]
            plans = [item for item in plans if item]
            if not plans:
                if not only_missing:
                    self._settled(family)
                return
            error, culprit = await self._restore(family, plans)
            if not error:
                report.changed += [difference for item in plans for difference in item.differences]
                self._lighten(family, plans)
                if await self._verified(family, plans) and not only_missing:
                    self._settled(family)
                    return
                continue
            _logger.warning("iptables-restore failed", family=family, attempt=attempt + 1, error=error)
            if culprit is not None and culprit == suspect:
                name, chain = _table_name(culprit[0]), culprit[1]
                if chain:
                    tables[name].refuse(chain, error)
                else:
                    await self._isolate(family, name, report, only_missing=only_missing)
                suspect = None
            else:
                suspect = culprit
            await asyncio.sleep(delay)
            delay *= 2
            self._adopt_family(family, await self._save(family))
        raise KernelError(f"cannot write the IPv{family} iptables rules after {_ATTEMPTS} attempts: {error}")

    async def _isolate(self, family: Family, name: TableName, report: WriteReport, *, only_missing: bool) -> None:
        """Write a table's chains in parts until those that the kernel does not take are alone, and refuse these.

        Chains that lead to others come first: whether the kernel takes a rule may depend on where it is reached from.
        O(refused x log(chains)) transactions, none of which opens anything.
        """
        table, actual = self._tables[family][name], self._actual[family][name]
        parts = [
            [
                chain
                for chain in table.from_hooks()
                if chain in table.dirty and not (only_missing and actual.chains.get(chain))
            ]
        ]
        self.unverified = True
        while parts:
            part = parts.pop()
            tried = trial(table, actual, part)
            if not tried:
                continue
            error, culprit = await self._restore(family, [tried])
            if not error:
                report.changed += tried.differences
            elif culprit is None:
                return  # it is not about a rule
            elif len(part) == 1:
                table.refuse(part[0], error)
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]

    def _settled(self, family: Family) -> None:
        for table in self._tables[family].values():
            table.dirty.clear()

    async def _restore(self, family: Family, plans: list[Plan]) -> tuple[str, tuple[str, str] | None]:
        """Error text ("" for success) and the (table, chain) that it is about, if it says; the chain may be ""."""
        lines: list[str] = []
        starts: list[tuple[int, Plan]] = []
        for item in plans:
            starts.append((len(lines), item))
            lines += item.restore_input()
            _LINES.labels(str(family), item.table).inc(len(lines) - starts[-1][0])
        done = await self._run(family, lines)
        if done.returncode == 0:
            for item in plans:
                item.record(self._actual[family][_table_name(item.table)])
                self._count(item.transactions)
                self._since.touched.update((family, item.table, name) for name in (*item.chains, *item.hooks))
            return "", None
        error = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        return error, culprit(error, starts)

    async def _run(self, family: Family, lines: list[str]) -> Completed:
        argv = [program(family, self.backend, "restore"), "--noflush"]
        if self.backend == "legacy":
            argv += ["--wait", str(_LOCK_WAIT)]
        text = "\n".join([*lines, ""])
        return await programs.run(argv, stdin=text, calls=_RESTORES, errors=_RESTORE_ERRORS)

    def _count(self, transactions: int) -> None:
        """Own transactions are not somebody else's."""
        self._generation = (self._generation + transactions) & 0xFFFFFFFF
        self._since.transactions += transactions

    def _lighten(self, family: Family, plans: list[Plan]) -> None:
        """Where every packet passes: in our hooks, and in the chains that they lead to."""
        if self._reader is None:
            return
        tables = self._tables[family]
        written = []
        hashes: set[str] = set()
        for item in plans:
            name = _table_name(item.table)
            hooks = tables[name].hooks
            busy = {*hooks, *(target for hook in hooks.values() for target in hook.targets)}
            chosen = busy & {*item.chains, *item.hooks}
            written += [(item.table, chain) for chain in sorted(chosen)]
            for hook in hooks.values():
                hashes.update((*hook.insert_hashes, *hook.append_hashes))
            for chain in filter(None, map(tables[name].content, chosen - hooks.keys())):
                pairs = zip(chain.rules, chain.hashes, strict=True)
                hashes.update(digest for rule, digest in pairs if not rule.match.startswith("-p "))
        try:
            lightened = self._reader.lighten(family, written, hashes)
        except KernelError as error:
            _logger.debug("comments of rules stay matches", error=str(error))
            return
        if lightened:
            self._count(1)
            self._since.touched.update((family, table, chain) for table, chain in written)

    async def _verified(self, family: Family, plans: list[Plan]) -> bool:
        """Read back what was written; what is not as expected stays dirty."""
        if self._reader is None or sum(len(item.chains) + len(item.hooks) for item in plans) > _MANY_CHAINS:
            self.unverified = True
            return True
        good = True
        for item in plans:
            actual = self._actual[family][_table_name(item.table)]
            for name, expected in item.chains.items():
                found = self._reader.rule_hashes(family, item.table, name)
                if found != expected:
                    good = False
                    _set(actual.chains, name, found)
            for name, rules in item.hooks.items():
                if self._reader.rule_hashes(family, item.table, name) != tuple(rule.digest for rule in rules):
                    good = False
        if not good:
            self._adopt_family(family, await self._save(family))
        return good


def _table_name(name: str) -> TableName:
    return next(table for table in TABLES if table == name)


def _set(chains: dict[str, tuple[str | None, ...]], name: str, hashes: tuple[str | None, ...] | None) -> None:
    if hashes is None:
        chains.pop(name, None)
    else:
        chains[name] = hashes


def _carry_over(known: Actual, read: Actual, name: str) -> None:
    """Keep what we know of a chain instead of what was read."""
    _set(read.chains, name, known.chains.get(name))
    if name in known.hooks:
        read.hooks[name] = known.hooks[name]
