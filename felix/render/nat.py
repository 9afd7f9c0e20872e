"""Source NAT of what leaves the pools (felix/rules/nat.go). Pure."""

from __future__ import annotations

from typing import Final

from calipy.felix.config import FelixConfig
from calipy.felix.render import syntax
from calipy.felix.render.names import set_name
from calipy.felix.render.rule import Chain, Rule
from calipy.net import Family

ALL_POOLS: Final = "network-ip-pools"
MASQUERADED_POOLS: Final = "masq-ipam-pools"
ALL_HOSTS: Final = "all-hosts-net"


def nat_outgoing_chain(family: Family, config: FelixConfig, *, active: bool) -> Chain:
    """``cali-nat-outgoing``: empty unless a pool of the family has natOutgoing (``active``)."""
    return Chain("cali-nat-outgoing", tuple(_rules(family, config)) if active else ())


def _rules(family: Family, config: FelixConfig) -> list[Rule]:
    exclude_hosts = config.nat_outgoing_exclude_hosts
    match = syntax.joined(
        syntax.in_set(set_name(family, MASQUERADED_POOLS), "src"),
        syntax.not_in_set(set_name(family, ALL_POOLS), "dst"),
        syntax.not_in_set(set_name(family, ALL_HOSTS), "dst") if exclude_hosts else "",
        syntax.to_interface(config.nat_outgoing_interface) if config.nat_outgoing_interface else "",
    )
    snat = config.nat_outgoing_address if family == 4 else ""
    action = f"--jump SNAT --to-source {snat}" if snat else "--jump MASQUERADE"
    ports = config.nat_port_range
    if ports is None:
        return [Rule(match, f"{action} --random-fully")]
    suffix = f":{ports.first}-{ports.last}" if snat else f" --to-ports {ports.first}-{ports.last}"
    rules = []
    for protocol in ("tcp", "udp"):
        rules.append(Rule(syntax.joined(f"-p {protocol}", match), f"{action}{suffix} --random-fully"))
        rules.append(Rule(syntax.joined(f"-p {protocol}", match), syntax.RETURN))
    return [*rules, Rule(match, f"{action} --random-fully")]
