"""``calipy bgp explain`` beside the real thing: what it says is what the kernels have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from calipy.cli.bgp import command
from calipy.datastore.kinds.cluster import CalicoNodeStatusSpec
from tests.support.bgp import BgpLab, BgpNode, eventually, eventually_is

pytestmark = pytest.mark.kernel


def test_each_link_of_the_chain(bgp_lab: BgpLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working block, a borrowed address, a node that is away, a claim in the making, a hidden pool, an own block."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.pool("10.99.0.0/16", "hidden", disable_bgp_export=True)
    bgp_lab.block("10.244.1.0/26", "n1")
    bgp_lab.block("10.99.1.0/26", "n1")
    bgp_lab.block("10.244.2.0/26", "n2", used={7: "n2"})
    bgp_lab.block("10.244.3.0/26", "n3", used={5: "n2"})
    bgp_lab.block("10.244.4.0/26", "n2", state="pending")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    bgp_lab.node("n3", "10.77.1.3/24", start=False)
    eventually_is("routes", {"10.244.2.0/26": (n2.address,), "10.244.3.5/32": (n2.address,)}, n1.gateways)

    def ask(node: BgpNode, prefix: str) -> dict[str, Any]:
        monkeypatch.setenv("CALIPY_RUN_DIR", str(node.directory))
        done = CliRunner().invoke(command, ["explain", prefix, "-o", "json"])
        found: dict[str, Any] = json.loads(done.output)
        assert done.exit_code == (1 if found["broken"] else 0)
        return found

    working = ask(n1, "10.244.2.7")
    assert (working["prefix"], working["broken"]) == ("10.244.2.0/26", "")
    assert working["steps"][-1]["text"] == "10.244.2.0/26 via 10.77.1.2 dev eth0 metric 1024"
    assert (ask(n1, "10.244.3.5")["prefix"], ask(n1, "10.244.3.5")["broken"]) == ("10.244.3.5/32", "")
    assert "the session with n3 (10.77.1.3) is not up" in ask(n1, "10.244.3.9")["broken"]
    assert "affinity not confirmed" in ask(n1, "10.244.4.1")["broken"]
    assert "disableBGPExport" in ask(n1, "10.99.1.1")["broken"]
    eventually("told", lambda: not ask(n1, "10.244.1.0/26")["broken"])
    own = next(step for step in ask(n1, "10.244.1.0/26")["steps"] if step["step"] == "announced")
    assert "10.77.1.2 (n2): told" in own["details"]
    foreign = ask(n1, "198.51.100.7")
    assert (foreign["prefix"], foreign["broken"], foreign["elsewhere"]["unknown"]) == ("0.0.0.0/0", "", [])
    assert foreign["steps"][-1]["text"].startswith("default via 10.77.1.254 dev eth0")
    assert ask(n1, "10.77.1.2")["steps"][-1]["text"] == "10.77.1.0/24 dev eth0 proto kernel"
    assert ask(n1, "10.77.1.1")["steps"][-1]["text"].startswith("local 10.77.1.1/32")
    assert ask(n1, "198.51.100.0/24")["prefix"] == "0.0.0.0/0"
    assert ask(n1, "0.0.0.0/0")["broken"] == "", "a pool lies in it, but it is none's"
    assert "no way to it" in ask(n1, "2001:db8::1")["broken"]
    assert ask(n1, "10.244.9.9")["broken"], "in a pool, but nobody's"
    monkeypatch.setenv("CALIPY_RUN_DIR", str(n1.directory))
    shown = CliRunner().invoke(command, ["explain", "10.244.4.1"])
    assert "BREAKS" in shown.output


def test_what_other_nodes_have(bgp_lab: BgpLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the routes that nodes publish, with their age; a node that publishes none is unknown, not guessed."""
    bgp_lab.pool("10.244.0.0/16")
    bgp_lab.block("10.244.1.0/26", "n1")
    n1, n2 = bgp_lab.node("n1", "10.77.1.1/24"), bgp_lab.node("n2", "10.77.1.2/24")
    bgp_lab.node("n3", "10.77.1.3/24", start=False)
    eventually_is("routes", {"10.244.1.0/26": (n1.address,)}, n2.gateways)
    spec = CalicoNodeStatusSpec(node="n2", classes=("Routes",), update_period_seconds=1)
    bgp_lab.apply("CalicoNodeStatus", "of-n2", spec)
    monkeypatch.setenv("CALIPY_RUN_DIR", str(n1.directory))

    def lines() -> str:
        return CliRunner().invoke(command, ["explain", "10.244.1.5"]).output

    eventually("n2's route", lambda: "node n2: has 10.244.1.0/26 via 10.77.1.1, as of " in lines())
    assert "(CalicoNodeStatus of-n2)" in lines()
    assert "unknown on n3: " in lines()
    bgp_lab.unblock("10.244.1.0/26", "n1")
    eventually("n2 without", lambda: "node n2: has 0.0.0.0/0 via 10.77.1.254, as of " in lines())
