"""Why traffic to a prefix goes where it goes, step by step, and where the chain breaks. Pure.

origin (whose block) ─► announced (to whom, if it is ours) or learned (from whom) ─► best path ─► kernel
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from calipy.bgp.advertise import Originated
from calipy.bgp.cluster import DATASTORE
from calipy.bgp.decision import Best
from calipy.bgp.fib import Programming, Resolution
from calipy.bgp.path import Attributes, Path
from calipy.net import PROTO_FELIX, IPAddress, Prefix, Route, host_prefix

Name: TypeAlias = Literal["origin", "announced", "learned", "best", "kernel"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What the datastore says of a prefix.

    Attributes:
        block: the IPAM block that covers it, None if none does.
        owner: node that the block belongs to, None for nobody.
        confirmed: whether the owner's affinity is confirmed.
        user: node that uses the address, "" if it is no single address or free.
    """

    block: Prefix | None = None
    owner: str | None = None
    confirmed: bool = False
    user: str = ""


@dataclass(frozen=True, slots=True)
class Telling:
    """One session, and the prefix in it.

    Attributes:
        node: the peer's, "" if it is none of the cluster.
        info: state of the session, for people.
        wanted, told: whether the peer should be told, and whether ExaBGP has taken it up.
        kept_back: why it should not.
    """

    peer: IPAddress
    node: str
    up: bool
    info: str
    wanted: bool
    told: bool
    kept_back: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the explanation is made of, for one destination (see ``destination``).

    Attributes:
        kernel: the route to it that bgpd has written, ``others`` whatever route the main table has.
        around: the route that the kernel takes to it, whoever wrote it and however long its prefix; None for none.
        pooled: whether it lies in a pool.
        failure: why the kernel refuses bgpd's.
    """

    asked: Prefix
    target: Prefix
    hostname: str
    from_datastore: bool
    origin: Origin
    originated: Originated
    sessions: tuple[Telling, ...]
    paths: tuple[Path, ...]
    best: Best | None
    resolve: Callable[[IPAddress], Resolution | None]
    programming: Programming
    kernel: Route | None
    others: Route | None
    failure: str
    around: Route | None = None
    pooled: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain."""

    name: Name
    ok: bool
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The chain; ``broken`` says where and why it breaks, "" if it holds."""

    asked: Prefix
    target: Prefix
    node: str
    steps: tuple[Step, ...]

    @property
    def broken(self) -> str:
        """The first link that does not hold."""
        return next((f"{step.name}: {step.text}" for step in self.steps if not step.ok), "")

    def as_json(self) -> dict[str, Any]:
        """For the socket and ``-o json``."""
        return {
            "asked": str(self.asked),
            "prefix": str(self.target),
            "node": self.node,
            "steps": [
                {"step": step.name, "ok": step.ok, "text": step.text, "details": list(step.details)}
                for step in self.steps
            ],
            "broken": self.broken,
        }


def destination(asked: Prefix, origin: Origin, known: Container[Prefix]) -> Prefix:
    """The prefix whose route decides about ``asked``: what there is, or should be, of the longest match.

    Args:
        asked: a prefix or an address.
        origin: of it.
        known: every prefix of the RIB, of what this node originates, and of our kernel routes.
    """
    if origin.user and not (origin.confirmed and origin.user == origin.owner):
        return host_prefix(asked.network_address)
    for length in range(asked.prefixlen, -1, -1):
        covering: Prefix = asked.supernet(new_prefix=length)
        if covering == origin.block or covering in known:
            return covering
    return asked


def explain(facts: Facts) -> Explanation:
    """The chain for one destination. O(sessions + paths of the prefix)."""
    if is_foreign(facts):
        target = facts.target if facts.around is None else facts.around.dst
        return Explanation(facts.asked, target, facts.hostname, tuple(_foreign(facts)))
    steps = [_origin(facts)]
    if _is_own(facts):
        steps += [_announced(facts), _kernel(facts)]
    else:
        steps.append(_learned(facts))
        if any(not path.rejected for path in facts.paths):
            steps.append(_best(facts))
        if facts.best is not None:
            steps.append(_kernel(facts))
            if any(telling.wanted for telling in facts.sessions):
                steps.append(_announced(facts))
    return Explanation(facts.asked, facts.target, facts.hostname, tuple(steps))


def home(facts: Facts) -> str:
    """The node that the destination leads to, as the datastore has it."""
    origin = facts.origin
    single = facts.target.prefixlen == facts.target.max_prefixlen
    return (origin.user if single and origin.user else origin.owner) or ""


def is_foreign(facts: Facts) -> bool:
    """Whether it is none of calipy's: in no pool, block or service range, and no peer's route to it is used."""
    inside = facts.pooled or facts.origin.block is not None or _is_own(facts)
    used = facts.kernel is not None or facts.failure or any(not path.rejected for path in facts.paths)
    return not inside and not used


def _foreign(facts: Facts) -> Iterator[Step]:
    yield Step("origin", True, "in no IP pool, IPAM block or service range: not calipy's")
    if facts.paths:
        yield Step("learned", True, "what peers tell of it is refused", _learned(facts).details)
    if facts.around is None:
        yield Step("kernel", False, "no route: nobody tells of it, and this kernel has no way to it")
        return
    route = facts.around
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    prefix = str(route.dst) if route.dst.prefixlen else "default"
    ways = [
        f"via {hop.gateway} dev {hop.interface}" if hop.gateway else f"dev {hop.interface}" for hop in route.next_hops
    ]
    writer = f"proto {_PROTOCOLS.get(route.protocol, route.protocol)}"
    text = f"{kind}{prefix} {', '.join(ways)} {writer}" if ways else f"{kind}{prefix} {writer}"
    yield Step("kernel", route.kind not in _DEAD_ENDS, text)


_PROTOCOLS: Final = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    PROTO_FELIX: "calipy-felix",
    186: "bgp",
}
"""Who wrote a route, as ``ip route`` names it."""
_DEAD_ENDS: Final = frozenset({"blackhole", "unreachable", "prohibit"})


def _is_own(facts: Facts) -> bool:
    return facts.target in facts.originated.prefixes() | facts.originated.hidden or home(facts) == facts.hostname


def _origin(facts: Facts) -> Step:
    origin, single = facts.origin, facts.target.prefixlen == facts.target.max_prefixlen
    if facts.target in facts.originated.services:
        return Step("origin", True, "service range of the BGPConfiguration")
    if origin.block is None or not facts.target.subnet_of(origin.block):  # type: ignore[arg-type]  # same family
        return Step("origin", True, "not in an IPAM block: peers alone can tell of it")
    affinity = "affinity confirmed" if origin.confirmed else "affinity not confirmed"
    text = (
        f"block {origin.block} of {origin.owner} ({affinity})" if origin.owner else f"block {origin.block} of no node"
    )
    if origin.user and single:
        return Step("origin", True, f"{text}; the address is used by {origin.user}, which announces it by itself")
    if not origin.owner:
        return Step("origin", False, f"{text}, so nobody announces it")
    if not origin.confirmed:
        return Step("origin", False, f"{text}, so {origin.owner} does not announce it")
    return Step("origin", True, text)


def _announced(facts: Facts) -> Step:
    family = [telling for telling in facts.sessions if telling.peer.version == facts.target.version]
    details = tuple(_told(telling) for telling in family)
    told = sum(telling.up and telling.told for telling in family)
    if told:
        return Step("announced", True, f"to {told} of {len(family)} peers", details)
    if facts.from_datastore and _is_own(facts):
        return Step("announced", True, "to no peer; other nodes read it in the datastore", details)
    if not family:
        return Step("announced", False, f"this node has no session that carries IPv{facts.target.version}")
    if facts.target in facts.originated.hidden:
        return Step(
            "announced", False, "in no pool, or in one with disableBGPExport: only a BGPFilter lets it out", details
        )
    return Step("announced", False, "to no peer", details)


def _told(telling: Telling) -> str:
    if not telling.wanted:
        return f"{_named(telling)}: kept back: {telling.kept_back}"
    if not telling.up:
        return f"{_named(telling)}: not up: {telling.info}"
    return f"{_named(telling)}: {'told' if telling.told else 'not told yet'}"


def _named(telling: Telling) -> str:
    return f"{telling.peer} ({telling.node})" if telling.node else str(telling.peer)


def _learned(facts: Facts) -> Step:
    details = tuple(f"{_source(path)}: next hop {path.attributes.next_hop}{_fate(path)}" for path in facts.paths)
    usable = sum(not path.rejected for path in facts.paths)
    if usable:
        return Step("learned", True, f"{usable} of {len(facts.paths)} paths usable", details)
    if facts.paths:
        return Step("learned", False, "every path is refused", details)
    return Step("learned", False, _silence(facts))


def _silence(facts: Facts) -> str:
    there = home(facts)
    if facts.from_datastore and there:
        return f"the datastore leads nowhere: Node {there} is missing, or has no IPv{facts.target.version} address"
    family = [telling for telling in facts.sessions if telling.peer.version == facts.target.version]
    if not family:
        return f"this node has no session that carries IPv{facts.target.version}"
    direct = next((telling for telling in family if there and telling.node == there), None)
    if direct is not None and not direct.up:
        return f"the session with {there} ({direct.peer}) is not up: {direct.info}"
    if direct is not None:
        return f"{there} does not announce it over its session: ask there with `calipy bgp explain {facts.target}`"
    down = [f"{_named(telling)}: {telling.info}" for telling in family if not telling.up]
    return "no peer tells of it" + (f"; not up: {'; '.join(down[:5])}" if down else "")


def _source(path: Path) -> str:
    return "datastore" if path.peer == DATASTORE else str(path.peer.address)


def _fate(path: Path) -> str:
    return f", refused: {path.rejected}" if path.rejected else ", stale" if path.stale else ""


def _best(facts: Facts) -> Step:
    best = facts.best
    if best is None:
        hops = sorted({str(path.attributes.next_hop) for path in facts.paths if not path.rejected})
        return Step("best", False, f"no route leads to next hop {', '.join(hops)}")
    several = f" of {best.candidates}" if best.candidates > 1 else ""
    found = facts.resolve(best.path.attributes.next_hop)
    ways = tuple(f"next hop reached via {hop.gateway} dev {hop.interface}" for hop in found.hops) if found else ()
    next_hop = best.path.attributes.next_hop
    return Step("best", True, f"{next_hop} from {_source(best.path)}{several}: {best.reason}", ways)


def _kernel(facts: Facts) -> Step:
    route = facts.kernel
    if facts.failure:
        return Step("kernel", False, f"the kernel refuses the route: {facts.failure}")
    if route is not None:
        hops = ", ".join(f"via {hop.gateway} dev {hop.interface}" for hop in route.next_hops)
        return Step("kernel", True, f"{route.dst} {hops or route.kind} metric {route.metric}")
    if _is_own(facts) or facts.target in facts.programming.own:
        return Step("kernel", True, "this node's own: the agent routes its addresses")
    if facts.programming.refuses(facts.target):
        return _by_the_agent(facts)
    return Step("kernel", False, "no route yet")


def _by_the_agent(facts: Facts) -> Step:
    if facts.others is not None:
        hops = ", ".join(f"via {hop.gateway} dev {hop.interface}" for hop in facts.others.next_hops)
        return Step("kernel", True, f"{facts.others.dst} {hops or facts.others.kind}: the agent's, as the pool asks")
    if facts.origin.block is None:
        return Step("kernel", True, "left to others: a service range, or an address of no block")
    return Step("kernel", False, "left to the agent, which has written no route: see calipy node status")


def tellings(
    states: Mapping[IPAddress, tuple[str, bool, str]],
    wanted: Mapping[IPAddress, Mapping[Prefix, Attributes]],
    told: Callable[[IPAddress], Mapping[Prefix, Attributes]],
    target: Prefix,
    kept_back: Callable[[IPAddress], str],
) -> tuple[Telling, ...]:
    """Every session, with the prefix in it.

    Args:
        states: by peer: node, whether up, and info.
        wanted: what each should be told.
        told: what ExaBGP has taken up for a peer.
        target: the prefix.
        kept_back: why a peer should not be told.
    """
    found = []
    for peer, (node, up, info) in sorted(states.items(), key=lambda item: (item[0].version, int(item[0]))):
        mine = wanted.get(peer, {}).get(target)
        reason = "" if mine is not None else kept_back(peer)
        has = mine is not None and told(peer).get(target) == mine
        found.append(Telling(peer, node, up, info, mine is not None, has, reason))
    return tuple(found)
