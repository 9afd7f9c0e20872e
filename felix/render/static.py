"""Chains that every node has whatever its endpoints are, and where they hook in (felix/rules/static.go). Pure.

IPVS has no part here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from calipy.felix.config import FelixConfig
from calipy.felix.messages import WorkloadEndpoint
from calipy.felix.render import encap, syntax
from calipy.felix.render.failsafe import failsafe_chains
from calipy.felix.render.host import FROM_HOST, FROM_HOST_FORWARD, TO_HOST, TO_HOST_FORWARD
from calipy.felix.render.marks import Marks
from calipy.felix.render.nat import nat_outgoing_chain
from calipy.felix.render.rule import Chain, Hook, Rule
from calipy.net import Family, family_of

FROM_WORKLOAD_DISPATCH: Final = "cali-from-wl-dispatch"
TO_WORKLOAD_DISPATCH: Final = "cali-to-wl-dispatch"
WORKLOAD_TO_HOST: Final = "cali-wl-to-host"
CIDR_BLOCK: Final = "cali-cidr-block"
RPF_SKIP: Final = "cali-rpf-skip"

TableName = Literal["filter", "nat", "mangle", "raw"]
TABLES: Final[tuple[TableName, ...]] = ("raw", "mangle", "nat", "filter")

_DNAT: Final = "--ctstate DNAT"
_POLICED: Final = "Host endpoint policy accepted packet."
_ICMP6_ALWAYS: Final = (130, 131, 132, 133, 135, 136)
"""Multicast listener and neighbour discovery: IPv6 does not work without them, whatever policy says."""


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


def chains(table: TableName, family: Family, config: FelixConfig, marks: Marks) -> tuple[Chain, ...]:
    """The fixed chains of a table; what they jump to beyond themselves comes from elsewhere."""
    builder = {"filter": _filter, "nat": _nat, "mangle": _mangle, "raw": _raw}[table]
    return builder(family, config, marks)


def _filter(family: Family, config: FelixConfig, marks: Marks) -> tuple[Chain, ...]:
    workloads = [f"{prefix}+" for prefix in config.interface_prefixes]
    allow = f"--jump {config.filter_allow_action}"
    accepted = Rule(syntax.mark_set(marks.accept), allow)
    forward = [
        # Accepted already: by untracked or pre-DNAT policy.
        Rule("", syntax.clear_mark(marks.all & ~marks.accept)),
        Rule(syntax.mark_clear(marks.accept), syntax.jump(FROM_HOST_FORWARD)),
    ]
    for workload in workloads:
        forward.append(Rule(syntax.from_interface(workload), syntax.jump(FROM_WORKLOAD_DISPATCH)))
        forward.append(Rule(syntax.to_interface(workload), syntax.jump(TO_WORKLOAD_DISPATCH)))
    forward.append(Rule("", syntax.jump(TO_HOST_FORWARD)))
    forward.append(Rule("", syntax.jump(CIDR_BLOCK)))
    to_host = [
        *(Rule(f"-p 58 -m icmp6 --icmpv6-type {kind}", allow) for kind in (_ICMP6_ALWAYS if family == 6 else ())),
        Rule("", syntax.jump(FROM_WORKLOAD_DISPATCH)),
        # Beyond Felix: without it pods could not answer their node where accepting means RETURN.
        *([Rule(syntax.ESTABLISHED, allow)] if config.filter_allow_action == "RETURN" else ()),
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
        Chain("cali-FORWARD", tuple(forward)),
        Chain(
            "cali-OUTPUT",
            # After DNAT the packet may leave by another interface than it seems here: see mangle POSTROUTING.
            (accepted, *outward, *_police(TO_HOST, allow, marks, match=f"-m conntrack ! {_DNAT}")),
        ),
        Chain(WORKLOAD_TO_HOST, tuple(to_host)),
        cidr_block_chain(family, config, ()),
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


def _nat(family: Family, config: FelixConfig, marks: Marks) -> tuple[Chain, ...]:
    del marks
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
        nat_outgoing_chain(family, config, active=False),
    )


def _mangle(family: Family, config: FelixConfig, marks: Marks) -> tuple[Chain, ...]:
    allow = f"--jump {config.mangle_allow_action}"
    accepted = syntax.mark_set(marks.accept)
    return (
        Chain(
            "cali-PREROUTING",
            (
                Rule(syntax.ESTABLISHED, allow),
                Rule(accepted, allow),
                Rule("", syntax.jump(FROM_HOST)),
                Rule(accepted, allow, (_POLICED,)),
            ),
        ),
        Chain(
            "cali-POSTROUTING",
            # Forwarded, says the mark; otherwise the node's own, and not policed yet if DNAT has redirected it.
            (
                Rule(accepted, syntax.RETURN),
                *_police(TO_HOST, syntax.RETURN, marks, match=f"-m conntrack {_DNAT}"),
            ),
        ),
        *failsafe_chains("mangle", family, config),
    )


def _raw(family: Family, config: FelixConfig, marks: Marks) -> tuple[Chain, ...]:
    from_workload = syntax.mark_set(marks.scratch0)
    accepted = Rule(syntax.mark_set(marks.accept), syntax.ACCEPT)
    return (
        Chain(
            "cali-PREROUTING",
            (
                Rule("", syntax.clear_mark(marks.all)),
                *encap.untracked(family, config),
                *(
                    Rule(syntax.from_interface(f"{prefix}+"), syntax.set_mark(marks.scratch0))
                    for prefix in config.interface_prefixes
                ),
                Rule(from_workload, syntax.jump(RPF_SKIP)),
                # Anti-spoofing: the answer to the source address must leave by the interface the packet came from.
                # Always DROP: the raw table knows no REJECT.
                Rule(syntax.joined(from_workload, syntax.RPF_FAILED), syntax.DROP),
                Rule(syntax.mark_clear(marks.scratch0), syntax.jump(FROM_HOST)),
                accepted,
            ),
        ),
        Chain(
            "cali-OUTPUT",
            (
                Rule("", syntax.clear_mark(marks.all)),
                Rule("", syntax.jump(TO_HOST)),
                *encap.untracked(family, config),
                accepted,
            ),
        ),
        rpf_skip_chain(()),
        *failsafe_chains("raw", family, config),
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
