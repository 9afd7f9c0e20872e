"""What an agent does before it is fully there: a kernel without our rules drops what comes from and goes to pods."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from calipy.felix.config import FelixConfig
from calipy.felix.ruleset import in_force
from calipy.node.guard import guard
from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

_LATER = ("grpc", "msgspec", "yaml", "calipy.datastore.client", "calipy.felix.graph.graph", "calipy.ipam", "calipy.cni")


def _guard(netns: Namespace) -> None:
    netns.call(lambda: asyncio.run(guard({})))


def _guarded(netns: Namespace) -> bool:
    """Whether our default for pods' interfaces is there and packets come by it, in both families."""
    saves = [netns.run(f"{program}-nft-save", "-t", "filter") for program in ("iptables", "ip6tables")]
    return all("-j cali-FORWARD" in save and "-A cali-from-wl-dispatch" in save for save in saves)


def _rules(netns: Namespace) -> str:
    return netns.run("nft", "-a", "list", "ruleset")


def test_an_empty_kernel_is_guarded(netns: Namespace) -> None:
    """Also again after somebody has removed everything."""
    for _ in range(2):
        assert not netns.call(in_force, FelixConfig())
        _guard(netns)
        assert _guarded(netns)
        assert netns.call(in_force, FelixConfig())
        netns.run("nft", "flush", "ruleset")


def test_chains_without_rules_are_no_guard(netns: Namespace) -> None:
    """Emptied with ``iptables -F``, in one family alone, or where we come in: all is written again."""
    chains = ("FORWARD", "cali-FORWARD")
    for emptied in (
        ("iptables-nft", "-F"),
        ("ip6tables-nft", "-F"),
        *(("iptables-nft", "-F", name) for name in chains),
    ):
        _guard(netns)
        netns.run(*emptied)
        assert not netns.call(in_force, FelixConfig())
        _guard(netns)
        assert _guarded(netns)


def test_rules_in_force_stay_as_they_are(netns: Namespace) -> None:
    """Nothing is written where an earlier agent's rules are: what they say of pods holds until policy is known."""
    _guard(netns)
    netns.run("iptables-nft", "-I", "cali-FORWARD", "-j", "ACCEPT")
    before = _rules(netns)
    _guard(netns)
    assert _rules(netns) == before


def test_it_needs_little() -> None:
    """What takes long to import comes afterwards."""
    program = f"import sys, calipy.node.guard; print(*[name for name in {_LATER} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
