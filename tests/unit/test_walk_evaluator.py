"""Evaluator and rendered chains check each other: random policies, every cell judged by both.

The evaluator knows resources only; the walk knows only the rules and sets that graph and renderer made of them, node by
node. Packets join in ``tests/kernel/test_netpol_packets.py``.
"""

from __future__ import annotations

import re
from itertools import count, islice

import pytest

from calipy.conformance.netpol_case import Case
from tests.support.netpol_random import PROBES, make_case, policies_of
from tests.support.walking import WalkedCluster, mismatches

POLICIES = 1000
CHUNKS = 8
_OPTION = re.compile(r"(?:! )?(?<![^ ])--?[a-z][a-z0-9-]*")
OTHER_ACTIONS = {
    "ChainInsertMode": "append",
    "IptablesFilterAllowAction": "Return",
    "IptablesMangleAllowAction": "Return",
    "IptablesFilterDenyAction": "Reject",
}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_policies(chunk: int) -> None:
    """1,000 random policies, of pods and nodes, changed at random: the walk of every probe ends as the evaluator says.

    Both ways, on all nodes; in every fourth case with other targets than DROP and ACCEPT, which change no verdict.
    """
    policies = 0
    for number in count():
        seed = 1_000_000 + CHUNKS * number + chunk
        case = make_case(seed, steps=2, hosts=number % 2 == 1, policies=(4, 9), probes=2)
        policies += policies_of(case)
        wrong = next(mismatches(case, OTHER_ACTIONS if number % 4 == 3 else {}), "")
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
            walked = walked or WalkedCluster(state.cluster)
            walked.move_to(state.cluster)
            for probe, source, destination, wanted in islice(state.cells(), seed % 3, None, 3):
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
    }  # fmt: skip
    assert wanted <= met, wanted - met
    assert any(action.startswith("--jump LOG") for action in met)
