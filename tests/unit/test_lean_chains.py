"""Rules that are left out, and the fast path, change no verdict: each packet ends as with all of Felix's rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.delta import Table
from calipy.felix.messages import (
    ActivePolicy,
    ActiveProfile,
    Changes,
    EndpointID,
    HostEndpoint,
    PolicyID,
    Rule,
    TierInfo,
    WorkloadEndpoint,
)
from calipy.felix.ownership import link_group
from calipy.felix.render import static
from calipy.felix.render.marks import Marks
from calipy.felix.render.names import ANY_INTERFACE
from calipy.felix.render.renderer import Renderer
from calipy.felix.walk import Packet, walk

SETTINGS = (
    FelixConfig(),
    FelixConfig(filter_allow_action="RETURN", mangle_allow_action="RETURN"),
    FelixConfig(interface_prefixes=("cali", "tap"), filter_deny_action="REJECT", spoofing_allowed=True),
)
DENY, ALLOW = (Rule("deny", protocol="udp"),), (Rule("allow", protocol="tcp"),)
TRAFFIC = PolicyID("GlobalNetworkPolicy", "", "p"), (*DENY, *ALLOW)
GROUPS = {"cali-known": link_group((4,)), "tap-known": link_group((4,)), "cali-six": link_group((6,))}
"""As the dataplane gives them: interfaces without endpoint, or with a disabled one, have none."""
INTERFACES = ("", "eth0", "eth1", "cali-known", "tap-known", "cali-down", "cali-six", "cali-unknown")


def tiers() -> tuple[TierInfo, ...]:
    return (TierInfo("default", "Deny", (TRAFFIC[0],), (TRAFFIC[0],)),)


def endpoint(interface: str, net: str, *, admin_up: bool = True) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        EndpointID("k8s", f"ns/{interface}", "eth0"),
        interface,
        "",
        (net,),
        tiers(),
        ("open",),
        admin_up=admin_up,
        spoof_prefixes=("198.51.100.0/24",) if interface == "cali-known" else (),
    )


def everything(**changed: bool) -> Changes:
    policy = replace(ActivePolicy(TRAFFIC[0], "default", TRAFFIC[1], TRAFFIC[1], selector="all()"), **changed)  # type: ignore[arg-type]
    pods = [
        endpoint("cali-known", "10.65.0.2/32"),
        endpoint("tap-known", "10.65.0.3/32"),
        endpoint("cali-down", "10.65.0.4/32", admin_up=False),
        endpoint("cali-six", "fd65::2/128"),
    ]
    return Changes(
        policies={policy.id: policy},
        profiles={"open": ActiveProfile("open", (Rule("allow"),), (Rule("allow"),))},
        endpoints={pod.id: pod for pod in pods},
    )


HOSTS: dict[str, tuple[dict[str, HostEndpoint], dict[str, bool]]] = {
    "none": ({}, {}),
    "normal": ({"eth0": HostEndpoint("h", "eth0", tiers=tiers())}, {}),
    "forward": ({"eth0": HostEndpoint("h", "eth0", tiers=tiers(), forward=tiers())}, {}),
    "everywhere": ({ANY_INTERFACE: HostEndpoint("h", "*", tiers=tiers(), forward=tiers())}, {}),
    "pre-DNAT": ({"eth0": HostEndpoint("h", "eth0", pre_dnat=tiers())}, {"pre_dnat": True}),
    "untracked": ({"eth0": HostEndpoint("h", "eth0", untracked=tiers())}, {"untracked": True}),
}


def tables(config: FelixConfig, hosts: str, *, complete: bool) -> dict[str, Table]:
    interfaces, kind = HOSTS[hosts]
    renderer = Renderer(4, config)
    renderer.update(everything(**kind))
    renderer.set_hosts(interfaces)
    renderer.set_fast_path(possible=not complete)
    if complete:  # as Felix has them, whatever there is
        present = static.Present(hosts=True, untracked=True, pre_dnat=True, spoofing=True, services=True)
        for name, table in renderer.tables.items():
            for chain in static.chains(name, 4, config, Marks.from_mask(config.mark_mask), present):
                table.put(chain)
    return dict(renderer.tables)


def packets(config: FelixConfig) -> Iterator[Packet]:
    groups = {name: group for name, group in GROUPS.items() if name.startswith(config.interface_prefixes)}
    states = ("new", "established", "related", "invalid")
    for comes, leaves, state, protocol, mark in product(
        INTERFACES, INTERFACES, states, ("tcp", "udp"), (0, 0xFFFF0000)
    ):
        if not (comes or leaves):
            continue
        packet = Packet(
            source=ipaddress.ip_address("10.65.0.2"),
            destination=ipaddress.ip_address("10.65.0.3"),
            protocol=protocol,
            source_port=1234,
            destination_port=80,
            in_interface=comes,
            out_interface=leaves,
            conntrack=state,  # type: ignore[arg-type]
            mark=mark,
            groups=groups,
        )
        yield packet
        if comes:
            yield replace(packet, spoofed=True)
            yield replace(packet, spoofed=True, source=ipaddress.ip_address("198.51.100.7"))


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("config", SETTINGS, ids=["accept", "return", "reject"])
def test_no_verdict_changes(config: FelixConfig, hosts: str) -> None:
    """Unknown, disabled and known interfaces of pods, the host's own; every state; policy of hosts of each kind."""
    lean, complete = tables(config, hosts, complete=False), tables(config, hosts, complete=True)
    verdicts = set()
    for packet in packets(config):
        ours, felixs = walk(lean, {}, packet), walk(complete, {}, packet)
        assert (ours.verdict, ours.tracked) == (felixs.verdict, felixs.tracked), (packet, ours.steps, felixs.steps)
        verdicts.add(ours.verdict)
    assert len(verdicts) > 1


def test_known_connections_end_at_the_first_rule_for_them() -> None:
    """What the fast path is for: three rules decide in FORWARD, not a dispatch tree."""
    lean = tables(FelixConfig(), "none", complete=False)
    for comes, leaves in (("cali-known", "eth0"), ("eth0", "cali-known")):
        packet = Packet(
            source=ipaddress.ip_address("10.65.0.2"),
            destination=ipaddress.ip_address("10.65.0.3"),
            protocol="udp",
            in_interface=comes,
            out_interface=leaves,
            conntrack="established",
            groups=GROUPS,
        )
        steps = [step for step in walk(lean, {}, packet).steps if step.table == "filter"]
        assert [step.chain for step in steps] == ["FORWARD", "cali-FORWARD"]
