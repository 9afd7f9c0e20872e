"""Desired ip sets, what the kernel holds, and the ``ipset restore`` input between them. Pure.

Membership changes travel as deltas: their cost follows the members that change, not the size of the set.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from calipy.felix.messages import Changes, IPSet, IPSetDelta, SetType
from calipy.felix.ownership import owns_set
from calipy.felix.render.dscp import MARKED_SOURCES, THIS_HOST
from calipy.felix.render.encap import ALL_VXLAN
from calipy.felix.render.names import set_name
from calipy.felix.render.nat import ALL_HOSTS, ALL_POOLS, MASQUERADED_POOLS
from calipy.net import Family, Prefix

KernelType = Literal["hash:net", "hash:ip", "hash:ip,port"]
_KERNEL_TYPES: Final[dict[SetType, KernelType]] = {"net": "hash:net", "ip": "hash:ip", "ip,port": "hash:ip,port"}
_FAMILIES: Final[tuple[Family, Family]] = (4, 6)
_WITH_EXTERNAL: Final = (ALL_HOSTS, ALL_VXLAN)
"""Sets to which each node gives its addresses, and the configuration those of external nodes."""
_SHARED: Final = (*_WITH_EXTERNAL, MARKED_SOURCES)
"""Sets with several owners, who may give the same members."""
_EXTERNAL: Final = None
_INET: Final[dict[Family, str]] = {4: "inet", 6: "inet6"}
_HALVES: Final = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}
"""hash:net cannot hold a /0."""
_WHOLE: Final = {half: whole for whole, halves in _HALVES.items() for half in halves}


@dataclass(slots=True)
class KernelSet:
    """A set as the kernel holds it, or should. Only ``members`` can change in place; ``size`` is maxelem."""

    type: str
    family: Family
    size: int
    members: set[str] = field(default_factory=set)

    def same_type(self, other: KernelSet) -> bool:
        """Whether the kernel would swap them."""
        return (self.type, self.family) == (other.type, other.family)

    def same_kind(self, other: KernelSet) -> bool:
        """Whether one can become the other by adding and deleting members."""
        return self.same_type(other) and self.size == other.size


class SetTable:
    """Desired sets of all families by kernel name.

    Attributes:
        dirty: sets that may differ from the kernel → the members to look at, None for all of them.
    """

    def __init__(self, size: int, external_nodes: tuple[Prefix, ...] = ()) -> None:
        """The sets that static rules use exist from the start.

        Args:
            size: maxelem of each.
            external_nodes: prefixes that count as nodes of the cluster.
        """
        self._size = size
        self._sets: dict[str, KernelSet] = {}
        self._ids: dict[str, SetType] = {}
        self.dirty: dict[str, set[str] | None] = {}
        for identity in (ALL_POOLS, MASQUERADED_POOLS, *_SHARED):
            self._put(IPSet(identity, "net", frozenset()))
        self._owners: dict[str, dict[Hashable, frozenset[str]]] = {identity: {} for identity in _SHARED}
        self._put(IPSet(THIS_HOST, "ip", frozenset()))
        for identity in _WITH_EXTERNAL:
            self._own(identity, _EXTERNAL, map(_member, external_nodes))

    @property
    def sets(self) -> Mapping[str, KernelSet]:
        """Desired sets by kernel name; not to be changed."""
        return self._sets

    def resized(self, size: int, external_nodes: tuple[Prefix, ...]) -> SetTable:
        """A table of the same sets with other parameters."""
        new = SetTable(size, external_nodes)
        for identity, kind in self._ids.items():
            if identity not in _SHARED:
                members = (self._sets[set_name(family, identity)].members for family in _FAMILIES)
                new._put(IPSet(identity, kind, frozenset().union(*members)))
        for identity, owners in self._owners.items():
            for owner, given in owners.items():
                if owner != _EXTERNAL:
                    new._own(identity, owner, given)
        return new

    def update(self, changes: Changes) -> None:
        """Take in one flush of the graph."""
        for identity, change in changes.ip_sets.items():
            if change is None:
                self._drop(identity)
            elif isinstance(change, IPSet):
                self._put(change)
            else:
                self._change_by(change)
        for cidr, pool in changes.pools.items():
            for identity, wanted in (
                (ALL_POOLS, pool is not None and not pool.load_balancer_only),
                (MASQUERADED_POOLS, pool is not None and pool.nat_outgoing),
            ):
                self._change(identity, (cidr,) if wanted else (), () if wanted else (cidr,))
        for name, host in changes.hosts.items():
            self._own(ALL_HOSTS, name, filter(None, (host.ipv4, host.ipv6)) if host else ())
        for node, vtep in changes.vteps.items():
            self._own(ALL_VXLAN, node, (vtep.parent,) if vtep and not vtep.local else ())
        for workload, endpoint in changes.endpoints.items():
            marked = endpoint.nets if endpoint and endpoint.dscp is not None else ()
            self._own(MARKED_SOURCES, workload, (net.partition("/")[0] for net in marked))
        for name, host_endpoint in changes.host_endpoints.items():
            marked = host_endpoint.expected_ips if host_endpoint and host_endpoint.dscp is not None else ()
            self._own(MARKED_SOURCES, name, marked)

    def set_this_host(self, addresses: Iterable[str]) -> None:
        """Take in all addresses of this node itself, bare. Linear in them."""
        members = (self._sets[set_name(family, THIS_HOST)].members for family in _FAMILIES)
        old, new = frozenset().union(*members), frozenset(addresses)
        self._change(THIS_HOST, new - old, old - new)

    @property
    def marks(self) -> bool:
        """Whether an endpoint has its packets marked when they leave the cluster."""
        return bool(self._owners[MARKED_SOURCES])

    def wants(self, name: str, member: str) -> bool:
        """Whether the kernel's set should have the member."""
        members = self._sets[name].members
        return member not in _HALVES and (member in members or _WHOLE.get(member) in members)

    def kernel_members(self, name: str) -> set[str]:
        """All members as the kernel holds them."""
        members = self._sets[name].members
        if members.isdisjoint(_HALVES):
            return members
        return {part for member in members for part in _HALVES.get(member, (member,))}

    def _put(self, ip_set: IPSet) -> None:
        self._ids[ip_set.id] = ip_set.type
        by_family: dict[Family, set[str]] = {family: set() for family in _FAMILIES}
        for member in ip_set.members:
            by_family[member_family(member)].add(member)
        for family, members in by_family.items():
            name = set_name(family, ip_set.id)
            self._sets[name] = KernelSet(_KERNEL_TYPES[ip_set.type], family, self._size, members)
            self.dirty[name] = None

    def _drop(self, identity: str) -> None:
        if self._ids.pop(identity, None) is not None:
            for family in _FAMILIES:
                name = set_name(family, identity)
                del self._sets[name]
                self.dirty.pop(name, None)

    def _own(self, identity: str, owner: Hashable, members: Iterable[str]) -> None:
        """Let an owner have these members and no others, of a set in which several may have the same."""
        owners, new = self._owners[identity], frozenset(members)
        old = owners.pop(owner, frozenset())
        if new:
            owners[owner] = new
        others = frozenset().union(*owners.values()) if old - new else frozenset()
        self._change(identity, new - old, old - new - others)

    def _change_by(self, delta: IPSetDelta) -> None:
        if delta.id in self._ids:
            self._change(delta.id, delta.added, delta.removed)

    def _change(self, identity: str, added: Iterable[str], removed: Iterable[str]) -> None:
        for wanted, members in ((True, added), (False, removed)):
            for member in members:
                family = member_family(member)
                name = set_name(family, identity)
                (self._sets[name].members.add if wanted else self._sets[name].members.discard)(member)
                touched = self.dirty.setdefault(name, set())
                if touched is not None:
                    touched.update(_HALVES.get(member, (member,)))


@dataclass(frozen=True, slots=True)
class SetPlan:
    """Input for ``ipset restore -exist``, and the set that each line is about."""

    lines: tuple[str, ...]
    owners: tuple[str, ...]


def plan_sets(table: SetTable, actual: Mapping[str, KernelSet], without: frozenset[str] = frozenset()) -> SetPlan:
    """Lines that bring the dirty sets in line, additions before deletions; sets in ``without`` are left alone.

    A set whose size is wrong, or that has no room for the additions before the deletions, is built under a temporary
    name and swapped in, so that the rules which use it never see it half full. The kernel does not swap sets of
    different types: such a one, which only somebody else can have made under our name, has to go first.
    """
    lines: list[tuple[str, str]] = []
    removals: list[tuple[str, str]] = []
    for name, touched in table.dirty.items():
        if name in without:
            continue
        wanted, found = table.sets[name], actual.get(name)
        add, remove = _differences(table, name, touched, found if found and found.same_type(wanted) else None)
        if found is not None and not found.same_type(wanted):
            lines.append((f"destroy {name}", name))
            found = None
        elif found is not None and (found.size != wanted.size or len(found.members) + len(add) > wanted.size):
            temporary = f"cali{wanted.family}t{len(lines)}"
            lines += ((line, name) for line in _rebuild(name, temporary, wanted, table.kernel_members(name)))
            continue
        if found is None:
            lines.append((_create(name, wanted), name))
        lines += ((f"add {name} {member}", name) for member in add)
        removals += ((f"del {name} {member}", name) for member in remove)
    lines += removals
    return SetPlan(tuple(line for line, _ in lines), tuple(name for _, name in lines))


def _differences(
    table: SetTable, name: str, touched: set[str] | None, found: KernelSet | None
) -> tuple[set[str], set[str]]:
    """Members to add and to delete, of those that were touched or of all."""
    have = found.members if found else set()
    if touched is None or found is None:
        members = table.kernel_members(name)
        return members - have, have - members
    return (
        {member for member in touched if member not in have and table.wants(name, member)},
        {member for member in touched if member in have and not table.wants(name, member)},
    )


def record_sets(table: SetTable, actual: dict[str, KernelSet], without: frozenset[str] = frozenset()) -> None:
    """Note in ``actual`` that ``plan_sets`` of the same arguments has been carried out, and clear what was dirty."""
    for name, touched in table.dirty.items():
        if name in without:
            continue
        wanted, found = table.sets[name], actual.get(name)
        if found is None or touched is None or not found.same_kind(wanted):
            actual[name] = KernelSet(wanted.type, wanted.family, wanted.size, set(table.kernel_members(name)))
            continue
        for member in touched:
            (found.members.add if table.wants(name, member) else found.members.discard)(member)
    table.dirty = {name: touched for name, touched in table.dirty.items() if name in without}


def compare_sets(table: SetTable, actual: Mapping[str, KernelSet]) -> set[str]:
    """Names of desired sets that are missing or differ; for after a full read. Linear in all members."""
    return {
        name
        for name, wanted in table.sets.items()
        if (found := actual.get(name)) is None
        or not found.same_kind(wanted)
        or found.members != table.kernel_members(name)
    }


def unwanted_sets(table: SetTable, actual: Mapping[str, KernelSet]) -> list[str]:
    """Sets of ours that nothing asks for any more."""
    return sorted(actual.keys() - table.sets.keys())


def parse_save(text: str) -> dict[str, KernelSet]:
    """Our sets in the output of ``ipset save``."""
    sets: dict[str, KernelSet] = {}
    current: KernelSet | None = None
    current_name = ""
    for line in text.splitlines():
        command, _, rest = line.partition(" ")
        name, _, rest = rest.partition(" ")
        if command == "add":
            if name == current_name and current is not None:
                current.members.add(rest.partition(" ")[0])
        elif command == "create":
            current_name, current = name, None
            if owns_set(name):
                current = sets[name] = _parse_create(rest)
    return sets


def _parse_create(text: str) -> KernelSet:
    kind, *words = text.split()
    options = dict(zip(words[::2], words[1::2], strict=False))
    return KernelSet(kind, 6 if options.get("family") == "inet6" else 4, int(options.get("maxelem", "0")))


def _member(prefix: Prefix) -> str:
    """A prefix as the kernel shows it: without the length where it is one address."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def member_family(member: str) -> Family:
    """Family of a member's address; the part behind a comma is protocol and port."""
    return 6 if ":" in member.partition(",")[0] else 4


def _create(name: str, wanted: KernelSet) -> str:
    return f"create {name} {wanted.type} family {_INET[wanted.family]} maxelem {wanted.size}"


def _rebuild(name: str, temporary: str, wanted: KernelSet, members: Iterable[str]) -> Iterator[str]:
    yield _create(temporary, wanted)
    yield f"flush {temporary}"
    yield from (f"add {temporary} {member}" for member in members)
    yield f"swap {temporary} {name}"
    yield f"destroy {temporary}"
