"""Evaluator and rendered chains check each other: random policies, every cell judged by both.

The evaluator knows resources only; the walk knows only the rules and sets that graph and renderer made of them, node by
node. Packets join in ``tests/kernel/test_netpol_packets.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count, islice

import pytest

from calipy.conformance.netpol_case import Case
from calipy.felix.messages import Encapsulation
from tests.support.netpol_random import PROBES, make_case, policies_of
from tests.support.walking import Settings, WalkedCluster, mismatches

POLICIES = 1000
CHUNKS = 8
_OPTION = re.compile(r"(?:! )?(?<![^ ])--?[a-z][a-z0-9-]*")
OTHER_ACTIONS = {
    "ChainInsertMode": "append",
    "IptablesFilterAllowAction": "Return",
    "IptablesMangleAllowAction": "Return",
    "IptablesFilterDenyAction": "Reject",
}
SETTINGS = (
    Settings(fast_path=True),
    Settings(encapsulation=Encapsulation(ipip=True, vxlan=True, vxlan6=True)),
    Settings(parameters=OTHER_ACTIONS, fast_path=True),
)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_policies(chunk: int) -> None:
    """1,000 random policies, of pods and nodes, changed at random: the walk of every probe ends as the evaluator says.

    Both ways, on all nodes; with settings that change rules and no verdict.
    """
    policies = 0
    for number in count():
        seed = 1_000_000 + CHUNKS * number + chunk
        case = make_case(seed, steps=2, hosts=number % 2 == 1, policies=(4, 9), probes=2)
        policies += policies_of(case)
        settings = SETTINGS[number // 2 % len(SETTINGS)]
        if "udp/4789" in case["probes"]:  # not for encapsulated packets, where nodes have tunnels
            settings = replace(settings, encapsulation=Encapsulation())
        wrong = next(mismatches(case, settings), "")
        assert not wrong, f"seed {seed}: {wrong}"
        if policies >= POLICIES / CHUNKS:
            break


def test_random_policies_meet_rules_of_every_kind() -> None:
    """What the comparison is worth: matches and targets of all kinds are met by packets, and both verdicts occur."""
    met: set[str] = set()
    for seed in range(32):
        case = make_case(seed, steps=0, hosts=seed % 4 > 0, policies=(10, 16), probes=len(PROBES))
        walked: WalkedCluster | None = None
        for state in Case(case["id"], "", "", (), case).states():
            walked = walked or WalkedCluster(state.cluster, SETTINGS[seed % 2])
            walked.move_to(state.cluster)
            for probe, source, destination, wanted in islice(state.cells(), seed % 5, None, 5):
                met.add(wanted)
                for passage in walked.travel(state.cluster, probe, source, destination):
                    met.update("untracked" for _ in range(not passage.walk.tracked))
                    for step in passage.walk.steps:
                        met |= {*_OPTION.findall(step.rule.match), step.rule.action, step.chain[:8]}
    wanted = {
        "A", "D", "untracked", "--jump NOTRACK", "--jump DROP", "--jump ACCEPT", "--jump RETURN",
        "cali-gi-", "cali-go-", "cali-pi-", "cali-po-", "cali-pri", "cali-pro", "cali-fhf", "cali-thf", "cali-fai",
        "-p", "! -p", "--source", "! --source", "--destination", "! --destination", "--match-set", "! --match-set",
        "--source-ports", "! --source-ports", "--destination-ports", "! --destination-ports",
        "--icmp-type", "! --icmp-type", "--icmpv6-type", "--ctstate", "--mark", "! --mark",
        "--src-group", "--dst-group",
    }  # fmt: skip
    assert wanted <= met, wanted - met
    assert any(action.startswith("--jump LOG") for action in met)
