"""The walk itself: hooks in the kernel's order, tables at each hook, chains with jump, goto and RETURN. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from calipy.felix.render.rule import Chain, Hook, Rule
from calipy.felix.sets import KernelSet
from calipy.felix.walk.matching import Sight, protocol_number
from calipy.felix.walk.packet import Packet, Step, Verdict, Walk, WalkError
from calipy.felix.walk.reading import TargetKind, read_match, read_target
from calipy.net import Family

_PREROUTING: Final = (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING"))
_INPUT: Final = (("mangle", "INPUT"), ("filter", "INPUT"), ("nat", "INPUT"))
_FORWARD: Final = (("mangle", "FORWARD"), ("filter", "FORWARD"))
_OUTPUT: Final = (("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("nat", "OUTPUT"), ("filter", "OUTPUT"))
_POSTROUTING: Final = (("mangle", "POSTROUTING"), ("nat", "POSTROUTING"))

_BEFORE_NAT: Final = frozenset(
    {("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING")}
    | {("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("nat", "OUTPUT")}
)
_KNOWS_IN: Final = frozenset({"PREROUTING", "INPUT", "FORWARD"})
_KNOWS_OUT: Final = frozenset({"FORWARD", "OUTPUT", "POSTROUTING"})

_MAX_DEPTH: Final = 64
_ONLY_IN: Final[dict[TargetKind, str]] = {"reject": "filter", "notrack": "raw", "dscp": "mangle", "translate": "nat"}


class TableView(Protocol):
    """What a walk needs of a table; ``felix.delta.Table`` is one."""

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """Our rules in the kernel's own chains, by chain."""

    def content(self, name: str) -> Chain | None:
        """A chain of ours; None: there is no such chain."""


def walk(tables: Mapping[str, TableView], sets: Mapping[str, KernelSet], packet: Packet) -> Walk:
    """Lead a packet through a node's tables, as netfilter does.

    The kernel's own chains are taken to hold nothing but our rules, and to accept what comes to their end. Tables that
    are not given are empty. Address translation changes nothing here: ``packet`` says what becomes of the destination,
    and the source changes after the last rule that could see it. O(rules met), and O(members) for each set asked that
    holds wider prefixes than hosts'.

    Args:
        tables: by name, of the packet's family: ``raw``, ``mangle``, ``nat``, ``filter``.
        sets: by kernel name.
        packet: at the node, with what the node knows of it.

    Raises:
        WalkError: a rule that is met is not modelled or the kernel would refuse it, or the packet is not possible.
    """
    if packet.source.version != packet.destination.version:
        raise WalkError(f"a packet from {packet.source} to {packet.destination}")
    return _Walker(tables, sets, packet).run()


class _Walker:
    def __init__(self, tables: Mapping[str, TableView], sets: Mapping[str, KernelSet], packet: Packet) -> None:
        self._tables = tables
        self._packet = packet
        self._family: Family = 4 if packet.source.version == 4 else 6
        self._steps: list[Step] = []
        self._tracked = packet.conntrack != "untracked"
        self._dscp: int | None = None
        self._table = self._hook = ""
        self._sight = Sight(
            packet,
            packet.destination,
            packet.destination_port,
            protocol_number(packet.protocol),
            packet.in_interface,
            packet.out_interface,
            frozenset(),
            packet.mark,
            sets,
        )

    def run(self) -> Walk:
        for table, hook in self._way():
            view = self._tables.get(table)
            if view is None or hook not in view.hooks or (table == "nat" and not self._translatable()):
                continue
            self._look(table, hook)
            own = view.hooks[hook]
            verdict = self._through(hook, (*own.inserts, *own.appends), view, 0)
            if verdict in {"drop", "reject"}:
                return self._end("drop" if verdict == "drop" else "reject")
        return self._end("accept")

    def _end(self, verdict: Verdict) -> Walk:
        return Walk(verdict, tuple(self._steps), self._sight.mark, self._tracked, self._dscp)

    def _way(self) -> tuple[tuple[str, str], ...]:
        """Tables and hooks in the order of their priorities."""
        comes, leaves = bool(self._packet.in_interface), bool(self._packet.out_interface)
        if not (comes or leaves):
            raise WalkError("a packet without interfaces; what a node sends to itself comes and goes by lo")
        if not leaves:
            return (*_PREROUTING, *_INPUT)
        return (*_PREROUTING, *_FORWARD, *_POSTROUTING) if comes else (*_OUTPUT, *_POSTROUTING)

    def _translatable(self) -> bool:
        """The nat table is asked for the first packet of a connection only."""
        return self._tracked and self._packet.conntrack in {"new", "related"}

    def _look(self, table: str, hook: str) -> None:
        """Set what rules of a table see at a hook."""
        self._table, self._hook = table, hook
        packet, sight, before = self._packet, self._sight, self._packet.before
        early = before is not None and (table, hook) in _BEFORE_NAT
        sight.destination = before.destination if before and early else packet.destination
        sight.destination_port = before.destination_port if before and early else packet.destination_port
        sight.in_interface = packet.in_interface if hook in _KNOWS_IN else None
        sight.out_interface = packet.out_interface if hook in _KNOWS_OUT else None
        if before is not None and before.out_interface and hook == "OUTPUT":
            sight.out_interface = before.out_interface
        sight.states = self._states()

    def _states(self) -> frozenset[str]:
        if not self._tracked:
            return frozenset({"UNTRACKED"})
        if self._table == "raw":  # comes before connection tracking
            return frozenset({"INVALID"})
        states = {self._packet.conntrack.upper()}
        if self._packet.dnat and self._packet.conntrack != "invalid":
            states.add("DNAT")
        return frozenset(states)

    def _through(self, name: str, rules: tuple[Rule, ...], view: TableView, depth: int) -> TargetKind | None:
        """Walk a chain; None if the packet comes to its end or returns."""
        if depth > _MAX_DEPTH:
            raise WalkError(f"chains lead in a circle to {name}")
        for position, rule in enumerate(rules):
            sight = self._sight
            for predicate in read_match(rule.match, self._family):
                if not predicate(sight):
                    break
            else:
                self._steps.append(Step(self._table, self._hook, name, position, rule))
                target = read_target(rule.action)
                kind = target.kind
                if kind in _ONLY_IN and _ONLY_IN[kind] != self._table:
                    raise WalkError(f"{rule.action!r} in table {self._table}")
                if kind == "mark":
                    sight.mark = sight.mark & ~target.mask | target.value
                elif kind == "dscp":
                    self._dscp = target.value
                elif kind == "return":
                    return None
                elif kind == "notrack":
                    self._tracked = False
                    sight.states = self._states()
                elif kind in {"jump", "goto"}:
                    chain = view.content(target.chain)
                    if chain is None:
                        raise WalkError(f"{name} leads to {target.chain}, which does not exist")
                    verdict = self._through(chain.name, chain.rules, view, depth + 1)
                    if verdict is not None or kind == "goto":
                        return verdict
                elif kind not in {"none", "log"}:
                    return kind
        return None
