"""Rules for encapsulated packets; hashes are those of the real Felix, read from a kernel that it has programmed."""

from __future__ import annotations

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.messages import Encapsulation
from calipy.felix.render import static
from calipy.felix.render.marks import Marks
from calipy.net import Family

VXLAN = Encapsulation(vxlan=True, vxlan6=True)


def rules(table: static.TableName, chain: str, family: Family, **config: object) -> list[tuple[str, str]]:
    """Hash and text of each rule of a chain."""
    settings = FelixConfig(**config)  # type: ignore[arg-type]
    marks = Marks.from_mask(settings.mark_mask)
    chains = static.chains(table, family, settings, marks, static.Present(untracked=True))
    found = next(c for c in chains if c.name == chain)
    return [(digest, rule.body) for digest, rule in zip(found.hashes, found.rules, strict=True)]


@pytest.mark.parametrize(
    ("table", "chain", "family", "hashes"),
    [
        ("filter", "cali-INPUT", 4, ["J76FwxInZIsk7uKY", "EDCNTTxYfggApx8C"]),
        ("filter", "cali-INPUT", 6, ["vgGyzXB2kTcAwG5B", "en2phk399PMqYtBm"]),
        ("filter", "cali-OUTPUT", 4, ["-QZG79DohFjalQBb"]),
        ("filter", "cali-OUTPUT", 6, ["nzh-Ph81zDLFSaTN"]),
        ("raw", "cali-OUTPUT", 6, ["ry5_UEpt1OaPPCxO"]),
        ("nat", "cali-POSTROUTING", 4, ["k5tPXc7Lt1qvBU9K", "ZUy_r64wRDl4JBc4"]),
        ("nat", "cali-POSTROUTING", 6, ["xB4H3XdwdliqLcnw", "uLBDf5GPOz4cNd21"]),
    ],
)
def test_rules_are_felixs(table: static.TableName, chain: str, family: Family, hashes: list[str]) -> None:
    """Hash by hash: the match, the action, the comments and the place of each."""
    given = {"vxlan_tunnel_address": "10.65.1.0", "vxlan_tunnel_address_v6": "fd65::100"}
    found = [digest for digest, _ in rules(table, chain, family, encapsulation=VXLAN, **given)]
    assert [digest for digest in found if digest in hashes] == hashes


def test_nothing_without_encapsulation() -> None:
    """Each family and kind has its rules only where it is in use; masquerading also needs the tunnel's address."""
    for encapsulation, family in (
        (Encapsulation(), 4),
        (Encapsulation(vxlan6=True), 4),
        (Encapsulation(vxlan=True), 6),
    ):
        for table, chain in (("filter", "cali-INPUT"), ("filter", "cali-OUTPUT"), ("raw", "cali-PREROUTING")):
            text = str(rules(table, chain, family, encapsulation=encapsulation))
            assert "4789" not in text
            assert "-p 4" not in text
    assert len(rules("nat", "cali-POSTROUTING", 4, encapsulation=VXLAN)) == 2


def test_ipip_is_for_nodes_of_the_cluster() -> None:
    """Protocol 4 from and to their addresses, else denied; IPv4 only. What the node sends gets the tunnel's address."""
    given = {
        "encapsulation": Encapsulation(ipip=True),
        "ipip_tunnel_address": "10.65.1.0",
        "filter_deny_action": "REJECT",
    }
    texts = [text for _, text in rules("filter", "cali-INPUT", 4, **given)]
    assert "-p 4 -m set --match-set cali40all-hosts-net src -m addrtype --dst-type LOCAL --jump ACCEPT" in texts[0]
    assert texts[1].endswith("-p 4 --jump REJECT")
    assert "-p 4" not in str(rules("filter", "cali-INPUT", 6, **given))
    assert any("all-hosts-net dst" in text for _, text in rules("filter", "cali-OUTPUT", 4, **given))
    (_, masqueraded) = rules("nat", "cali-POSTROUTING", 4, **given)[2]
    assert masqueraded.startswith("--out-interface tunl0 ")


@pytest.mark.parametrize(
    ("port", "ports"), [(4789, "4790-65535"), (60000, "1024-59999"), (65535, "1024-65534"), (500, "1024-65535")]
)
def test_masqueraded_udp_leaves_the_vxlan_port_alone(port: int, ports: str) -> None:
    """The wider range of the unprivileged ports below and above it."""
    found = rules("nat", "cali-POSTROUTING", 4, encapsulation=VXLAN, vxlan_tunnel_address="10.65.1.0", vxlan_port=port)
    assert f"--to-ports {ports} " in found[2][1]
