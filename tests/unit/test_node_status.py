"""``calipy node status`` in calicoctl's shape, also when a daemon does not answer."""

from __future__ import annotations

from typing import Any

from calipy.node.status import NodeStatus, peer_table, text


def _peer(address: str, kind: str, info: str) -> dict[str, Any]:
    state = "up" if info == "Established" else "start"
    return {"address": address, "type": kind, "state": state, "since": "2026-11-24T10:00:00Z", "info": info}


PEERS = [
    _peer("10.0.0.2", "node-to-node mesh", "Established"),
    _peer("10.0.0.1", "global", "Active: refused"),
    _peer("fd00::2", "node specific", "Established"),
]
AGENT = {"pid": 7, "ready": True, "reasons": [], "felix": {"endpoints": {"a/eth0": {"state": "up", "cause": ""}}}}
BGPD = {"pid": 8, "exabgp_pid": 9, "ready": False, "reasons": ["no peer is up"], "peers": PEERS}


def test_peers_of_a_family_are_a_box_table_with_capital_heads() -> None:
    """Columns and order as calicoctl prints them; the other family is not in it."""
    lines = peer_table(PEERS, 4).splitlines()
    assert lines[0] == "IPv4 BGP status"
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "PEER ADDRESS",
        "PEER TYPE",
        "STATE",
        "SINCE",
        "INFO",
    ]
    assert [line.split("|")[1].strip() for line in lines[4:6]] == ["10.0.0.1", "10.0.0.2"]
    assert "fd00::2" not in peer_table(PEERS, 4)
    assert "fd00::2" in peer_table(PEERS, 6)
    assert len({len(line) for line in lines[1:]}) == 1


def test_no_peers_is_said() -> None:
    """An empty family reads as calicoctl words it."""
    assert peer_table([], 6) == "No IPv6 peers found.\n"


def test_text_names_processes_and_reasons() -> None:
    """Both daemons with pid and readiness, the reason where one is not ready."""
    shown = text(NodeStatus(AGENT, "", BGPD, ""))
    assert "calipy agent is running (pid 7), ready; 1 of 1 local endpoints up." in shown
    assert "calipy bgpd is running (pid 8, ExaBGP 9), not ready: no peer is up." in shown


def test_warnings_are_shown() -> None:
    """Such as a tunnel that the pools ask for and that cannot be."""
    warned = {**AGENT, "felix": {**AGENT["felix"], "warnings": ["this kernel has no IPIP driver"]}}
    warned["warnings"] = ["cannot listen for metrics"]
    shown = text(NodeStatus(warned, "", BGPD, ""))
    assert "\nwarning: cannot listen for metrics\nwarning: this kernel has no IPIP driver\n" in shown


def test_problems_of_bgp_are_shown() -> None:
    """Such as a resource that nobody can read."""
    shown = text(NodeStatus(AGENT, "", {**BGPD, "problems": {"BGPPeer(tor)": "cannot be decoded"}}, ""))
    assert "\nwarning: BGPPeer(tor): cannot be decoded\n" in shown


def test_a_silent_daemon_is_named_and_hides_nothing_else() -> None:
    """One daemon that does not answer does not keep the other's state from being shown."""
    shown = text(NodeStatus(None, "nothing answers at /run/x", BGPD, ""))
    assert "calipy agent does not answer: nothing answers at /run/x" in shown
    assert "10.0.0.2" in shown
    document = NodeStatus(AGENT, "", None, "gone").document()
    assert document["bgpd"] == {"pid": 0, "problem": "gone"}
    assert document["bgp"] == {"peers": []}
