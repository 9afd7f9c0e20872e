"""Chains that every node has whatever its endpoints are, and where they hook in (felix/rules/static.go). Pure.

Every packet meets them, so that a rule stands here only while it can concern one (``Present``). Where host endpoints
have policy the chain is Felix's, rule for rule, but for the fast path in cali-FORWARD.

IPVS has no part here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from calipy.felix.config import FelixConfig
from calipy.felix.messages import LocalBGPPeer, WorkloadEndpoint
from calipy.felix.render import dscp, encap, syntax
from calipy.felix.render.failsafe import failsafe_chains
from calipy.felix.render.host import FROM_HOST, FROM_HOST_FORWARD, TO_HOST, TO_HOST_FORWARD
from calipy.felix.render.marks import Marks
from calipy.felix.render.rule import Chain, Hook, Rule
from calipy.net import Family, family_of

FROM_WORKLOAD_DISPATCH: Final = "cali-from-wl-dispatch"
TO_WORKLOAD_DISPATCH: Final = "cali-to-wl-dispatch"
WORKLOAD_TO_HOST: Final = "cali-wl-to-host"
CIDR_BLOCK: Final = "cali-cidr-block"
RPF_SKIP: Final = "cali-rpf-skip"

TableName = Literal["filter", "nat", "mangle", "raw"]
TABLES: Final[tuple[TableName, ...]] = ("raw", "mangle", "nat", "filter")

_REFUSES: Final = frozenset({"DROP", "REJECT"})
_DNAT: Final = "--ctstate DNAT"
_POLICED: Final = "Host endpoint policy accepted packet."
_ICMP6_ALWAYS: Final = (130, 131, 132, 133, 135, 136)
"""Multicast listener and neighbour discovery: IPv6 does not work without them, whatever policy says."""


@dataclass(frozen=True, slots=True)
class Present:
    """What there is on the node now: what there is not needs no rules.

    Attributes:
        hosts: a host endpoint.
        untracked, pre_dnat: a host endpoint with policy of the kind.
        spoofing: an endpoint that may use other source addresses than its own.
        services: ranges that must not be forwarded.
        marked: an endpoint whose packets are marked when they leave the cluster.
        fast_path: the kernel can match link groups, by which interfaces of endpoints are known (``felix.ownership``).
        peers: matches of what pods send to the node that have a BGP session with it.
    """

    hosts: bool = False
    untracked: bool = False
    pre_dnat: bool = False
    spoofing: bool = False
    services: bool = False
    marked: bool = False
    fast_path: bool = False
    peers: tuple[str, ...] = ()


def unknown_interface(config: FelixConfig) -> tuple[Rule, ...]:
    """End of the workload dispatch chains: a pod that is not known yet gets nothing through."""
    return (Rule("", f"--jump {config.filter_deny_action}", ("Unknown interface",)),)


def hooks(table: TableName, config: FelixConfig, marks: Marks) -> tuple[Hook, ...]:
    """Our rules in the kernel's own chains of a table."""
    in_front = config.chain_insert_mode == "insert"

    def hook(chain: str, tail: tuple[Rule, ...] = (), *, insert: bool = in_front) -> Hook:
        jump = (Rule("", syntax.jump(f"cali-{chain}")),)
        return Hook(chain, jump, tail) if insert else Hook(chain, (), (*jump, *tail))

    if table == "raw":
        return hook("PREROUTING"), hook("OUTPUT")
    if table == "mangle":
        return hook("PREROUTING"), hook("POSTROUTING")
    if table == "nat":
        # Appended in every mode: kube-proxy has to clear its own mark before an encapsulated packet can inherit it.
        return hook("PREROUTING"), hook("OUTPUT"), hook("POSTROUTING", insert=False)
    accepted = Rule(
        syntax.mark_set(marks.accept), f"--jump {config.filter_allow_action}", ("Policy explicitly accepted packet.",)
    )
    # Tells mangle POSTROUTING that the packet was forwarded.
    tail = (accepted, Rule("", syntax.set_mark(marks.accept)))
    return hook("INPUT"), hook("FORWARD", tail), hook("OUTPUT")


def chains(table: TableName, family: Family, config: FelixConfig, marks: Marks, present: Present) -> tuple[Chain, ...]:
    """The fixed chains of a table; what they jump to beyond themselves comes from elsewhere."""
    if table == "raw":
        return _raw(family, config, marks, present)
    if table == "mangle":
        return _mangle(family, config, marks, present)
    return _filter(family, config, marks, present) if table == "filter" else _nat(family, config)


def _forward(family: Family, config: FelixConfig, marks: Marks, present: Present) -> Iterator[Rule]:
    """``cali-FORWARD``.

    The fast path says at once what the endpoint's chain would say first: a packet of a known connection passes. It is
    for interfaces whose link group says that they have an endpoint, programmed and enabled. One that comes from a pod
    is judged by that side alone, as in Felix; what goes to a pod is looked at when it is certain that it does not come
    from an interface without endpoint.
    """
    workloads = [f"{prefix}+" for prefix in config.interface_prefixes]
    fast = present.fast_path and config.filter_allow_action == "ACCEPT"
    if fast:
        yield Rule(syntax.joined(syntax.from_group(family), syntax.ESTABLISHED), syntax.ACCEPT)
    # Accepted already: by untracked or pre-DNAT policy.
    scratch = marks.all & ~marks.accept
    yield Rule(syntax.mark_not_clear(scratch), syntax.clear_mark(scratch))
    if present.hosts:
        yield Rule(syntax.mark_clear(marks.accept), syntax.jump(FROM_HOST_FORWARD))
    for workload in workloads:
        yield Rule(syntax.from_interface(workload), syntax.jump(FROM_WORKLOAD_DISPATCH))
    if fast:
        yield Rule(syntax.joined(syntax.to_group(family), syntax.ESTABLISHED), syntax.ACCEPT)
    for workload in workloads:
        yield Rule(syntax.to_interface(workload), syntax.jump(TO_WORKLOAD_DISPATCH))
    if present.hosts:
        yield Rule("", syntax.jump(TO_HOST_FORWARD))
    if present.services:
        yield Rule("", syntax.jump(CIDR_BLOCK))


def _filter(family: Family, config: FelixConfig, marks: Marks, present: Present) -> tuple[Chain, ...]:
    workloads = [f"{prefix}+" for prefix in config.interface_prefixes]
    allow = f"--jump {config.filter_allow_action}"
    accepted = Rule(syntax.mark_set(marks.accept), allow)
    to_host = [
        *(Rule(f"-p 58 -m icmp6 --icmpv6-type {kind}", allow) for kind in (_ICMP6_ALWAYS if family == 6 else ())),
        Rule("", syntax.jump(FROM_WORKLOAD_DISPATCH)),
        # Beyond Felix: without it pods could not answer their node where accepting means RETURN.
        *([Rule(syntax.ESTABLISHED, allow)] if config.filter_allow_action == "RETURN" else ()),
        # Beyond Felix: a pod that a BGPPeer selects reaches the BGP speaker, as far as its own policy lets it.
        *(Rule(peer, allow) for peer in (present.peers if config.endpoint_to_host_action in _REFUSES else ())),
        Rule("", f"--jump {config.endpoint_to_host_action}", ("Configured DefaultEndpointToHostAction",)),
    ]
    inward = [
        *encap.inward(family, config),
        *(Rule(syntax.from_interface(workload), syntax.goto(WORKLOAD_TO_HOST)) for workload in workloads),
    ]
    # From the host to its own pods there is no policy: a node must be able to probe what it runs.
    outward = [
        *(Rule(syntax.to_interface(workload), syntax.RETURN) for workload in workloads),
        *encap.outward(family, config),
    ]
    return (
        Chain("cali-INPUT", (*inward, accepted, *_police(FROM_HOST, allow, marks))),
        Chain("cali-FORWARD", tuple(_forward(family, config, marks, present))),
        Chain(
            "cali-OUTPUT",
            # After DNAT the packet may leave by another interface than it seems here: see mangle POSTROUTING.
            (accepted, *outward, *_police(TO_HOST, allow, marks, match=f"-m conntrack ! {_DNAT}")),
        ),
        Chain(WORKLOAD_TO_HOST, tuple(to_host)),
        *failsafe_chains("filter", family, config),
    )


def cidr_block_chain(family: Family, config: FelixConfig, ranges: Iterable[str]) -> Chain:
    """Against loops: what is forwarded to an announced service that no node answers for must not go back to the router.

    That would return it: the ranges lead to the nodes there (ServiceLoopPrevention; felix/rules/nat.go).
    """
    action = config.service_loop_action
    blocked = [one for one in ranges if action and family_of(one) == family]
    return Chain(CIDR_BLOCK, tuple(Rule(f"--destination {one}", f"--jump {action}") for one in blocked))


def _police(dispatch: str, allow: str, marks: Marks, *, match: str = "") -> tuple[Rule, ...]:
    """Policy of host endpoints, and what becomes of what it accepts."""
    return (
        Rule("", syntax.clear_mark(marks.all)),
        Rule(match, syntax.jump(dispatch)),
        Rule(syntax.mark_set(marks.accept), allow, (_POLICED,)),
    )


def _nat(family: Family, config: FelixConfig) -> tuple[Chain, ...]:
    return (
        Chain("cali-PREROUTING", (Rule("", syntax.jump("cali-fip-dnat")),)),
        Chain("cali-OUTPUT", (Rule("", syntax.jump("cali-fip-dnat")),)),
        Chain(
            "cali-POSTROUTING",
            (
                Rule("", syntax.jump("cali-fip-snat")),
                Rule("", syntax.jump("cali-nat-outgoing")),
                *encap.masqueraded(family, config),
            ),
        ),
        Chain("cali-fip-dnat", ()),
        Chain("cali-fip-snat", ()),
    )


def _mangle(family: Family, config: FelixConfig, marks: Marks, present: Present) -> tuple[Chain, ...]:
    allow = f"--jump {config.mangle_allow_action}"
    accepted = syntax.mark_set(marks.accept)
    pre_dnat = (Rule("", syntax.jump(FROM_HOST)), Rule(accepted, allow, (_POLICED,)))
    marking = (dscp.leaving(family),) if present.marked else ()
    # Forwarded, says the mark; otherwise the node's own, and not policed yet if DNAT has redirected it.
    redirected = (
        Rule(accepted, syntax.RETURN),
        *_police(TO_HOST, syntax.RETURN, marks, match=f"-m conntrack {_DNAT}"),
    )
    return (
        Chain(
            "cali-PREROUTING",
            (Rule(syntax.ESTABLISHED, allow), Rule(accepted, allow), *(pre_dnat if present.pre_dnat else ())),
        ),
        Chain("cali-POSTROUTING", (*marking, *(redirected if present.hosts else ()))),
        *failsafe_chains("mangle", family, config),
    )


def _raw(family: Family, config: FelixConfig, marks: Marks, present: Present) -> tuple[Chain, ...]:
    workloads = [syntax.from_interface(f"{prefix}+") for prefix in config.interface_prefixes]
    from_workload = syntax.mark_set(marks.scratch0)
    accepted = Rule(syntax.mark_set(marks.accept), syntax.ACCEPT)
    inward: tuple[Rule, ...]
    # Anti-spoofing: the answer to the source address must leave by the interface the packet came from. Always DROP: the
    # raw table knows no REJECT.
    if present.untracked or present.spoofing:
        inward = (
            Rule("", syntax.clear_mark(marks.all)),
            *encap.untracked(family, config),
            *(Rule(workload, syntax.set_mark(marks.scratch0)) for workload in workloads),
            Rule(from_workload, syntax.jump(RPF_SKIP)),
            Rule(syntax.joined(from_workload, syntax.RPF_FAILED), syntax.DROP),
            Rule(syntax.mark_clear(marks.scratch0), syntax.jump(FROM_HOST)),
            accepted,
        )
    else:
        inward = (
            Rule(syntax.mark_not_clear(marks.all), syntax.clear_mark(marks.all)),
            *encap.untracked(family, config),
            *(Rule(syntax.joined(workload, syntax.RPF_FAILED), syntax.DROP) for workload in workloads),
        )
    return (
        Chain("cali-PREROUTING", inward),
        Chain(
            "cali-OUTPUT",
            (
                Rule("", syntax.clear_mark(marks.all)),
                Rule("", syntax.jump(TO_HOST)),
                *encap.untracked(family, config),
                accepted,
            ),
        ),
        *failsafe_chains("raw", family, config),
    )


def bgp_peer(interface: str, peer: LocalBGPPeer, family: Family) -> tuple[str, ...]:
    """Matches of what the pod behind an interface sends to the node's BGP speaker."""
    return tuple(
        syntax.joined(
            syntax.from_interface(interface),
            "-p tcp",
            f"-m multiport --destination-ports {peer.port}",
            f"--destination {address}",
        )
        for address in peer.addresses
        if family_of(address) == family
    )


def rpf_skip_chain(endpoints: Iterable[WorkloadEndpoint]) -> Chain:
    """Exceptions from the spoofing check: sources that an endpoint may use though no route leads to it for them."""
    return Chain(
        RPF_SKIP,
        tuple(
            Rule(f"{syntax.from_interface(endpoint.interface)} --source {prefix}", syntax.ACCEPT)
            for endpoint in endpoints
            for prefix in endpoint.spoof_prefixes
        ),
    )
