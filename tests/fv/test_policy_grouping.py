"""Theme ``policy_grouping``: neighbouring policies with one selector share a chain, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab, Node
from tests.support.objects import Object, global_policy, make, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

EQUAL = ("all()", "has(app)", "app == 'server'", "app in {'server'}", "app != 'nobody'", "!has(nothing)")
"""Selectors of different texts that all find the server."""

GROUPINGS = {
    "one group": ("all()",) * 12,
    "no groups": EQUAL * 2,
    "two groups": ("all()",) * 5 + ("has(app)",) * 7,
    "groups and single ones": ("all()", "all()", "has(app)", "all()", *("app == 'server'",) * 7, "has(app)"),
    "groups with strangers among them": ("all()", "app == 'client'", *("has(app)",) * 3, "app == 'client'") * 2,
}
ALLOWED = (0, 2, 5, 6, 7, 8, 11)
"""Which of the twelve allow their port; the third also denies the port of the ninth, the eighth passes one on."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A server and a client on one node."""
    with Lab() as lab:
        lab.pod("server", app="server")
        lab.pod("client", app="client")
        yield lab.settled()


def tcp(action: str, *ports: int) -> dict:
    """A rule for TCP ports."""
    return rule(action, protocol="TCP", destination={"ports": list(ports)})


def twelve(selectors: tuple[str, ...]) -> list[Object]:
    """Twelve policies in a tier, by order, each with its own port; every third is for egress as well."""
    found = []
    for number, selector in enumerate(selectors):
        rules = [tcp("Allow", 8000 + number)] if number in ALLOWED else []
        if number == 2:
            rules.append(tcp("Deny", 8008))
        if number == 7:
            rules.insert(0, tcp("Pass", 8011, 8100))
        types = ["Ingress", "Egress"] if number % 3 == 0 else ["Ingress"]
        more = {"egress": [rule("Allow")]} if number % 3 == 0 else {}
        found.append(
            global_policy(
                f"g{number:02}", selector=selector, order=number, types=types, ingress=rules, tier="t", **more
            )
        )
    return found


def groups(node: Node) -> set[str]:
    """Chains of groups for ingress."""
    return {line.split()[1] for line in node.rules() if line.startswith("-A cali-gi-")}


@pytest.mark.parametrize("name", GROUPINGS)
def test_verdicts_do_not_depend_on_groups(lab: Lab, name: str) -> None:
    """The same rules in the same order decide the same, in one chain or in many; only the chains differ."""
    server, client = lab.pods
    selectors = GROUPINGS[name]
    lab.apply(make("Tier", "t", {"order": 10}), *twelve(selectors))
    # A policy that selects only the client does nothing for the server.
    here = {number for number in ALLOWED if selectors[number] != "app == 'client'"}
    denied = {8008} if selectors[2] != "app == 'client'" else set()
    passed = {8011} if selectors[7] != "app == 'client'" else set()
    opened = {8000 + number for number in here} - denied - passed
    shut = ({8000 + number for number in range(12)} | {8200}) - opened - passed
    matrix = {
        (client, server): " ".join(
            f"{'' if port in opened | passed else '!'}tcp46/{port}" for port in sorted(opened | shut | passed | {8100})
        )
    }
    matrix = {
        pair: text.replace("!tcp46/8100", "tcp46/8100" if passed else "!tcp46/8100") for pair, text in matrix.items()
    }
    lab.expect(matrix)
    assert bool(groups(lab.nodes[0])) is (name != "no groups")


def test_staged_members_count_for_nothing(lab: Lab) -> None:
    """A staged policy among others neither decides nor makes a group, and does not shut the direction."""
    server, client = lab.pods
    staged = make("StagedGlobalNetworkPolicy", "deny", {"selector": "all()", "order": 1, "ingress": [rule("Deny")]})
    lab.apply(staged)
    lab.expect({(client, server): "tcp46/80"})
    lab.apply(global_policy("allow", selector="all()", order=2, types=["Ingress"], ingress=[tcp("Allow", 80)]))
    lab.expect({(client, server): "tcp46/80 !tcp46/81"})
    assert not groups(lab.nodes[0])


def test_endpoints_share_their_groups(lab: Lab) -> None:
    """Two endpoints with the same policies go through the same chain; it goes when nobody needs it any more."""
    policies = [
        global_policy(f"p{n}", selector="all()", order=n, types=["Ingress"], ingress=[tcp("Allow", n)]) for n in (1, 2)
    ]
    lab.apply(*policies)
    (chain,) = groups(lab.nodes[0])
    jumps = [line for line in lab.nodes[0].rules() if f"-j {chain}" in line]
    assert len(jumps) == 2, jumps
    lab.delete(policies[0])
    assert not groups(lab.nodes[0])


def test_regrouping_while_traffic_flows(lab: Lab) -> None:
    """Policies that move from group to group under a stream neither open a port nor cut what is allowed."""
    server, client = lab.pods
    lab.apply(make("Tier", "t", {"order": 10}), *twelve(GROUPINGS["one group"]))
    udp = rule("Allow", protocol="UDP", destination={"ports": [5000]})
    lab.apply(global_policy("g00", selector="all()", order=0, types=["Ingress"], ingress=[udp], tier="t"))
    with lab.stream(client, server, 5000) as allowed, lab.stream(client, server, 5001) as denied:
        allowed.begin()
        denied.begin()
        for name in ("no groups", "two groups", "groups and single ones", "one group") * 2:
            lab.apply(*twelve(GROUPINGS[name])[1:], wait=False)
        lab.sync()
        allowed.end()
        denied.end()
    assert allowed.sent > 0
    assert allowed.lost == 0
    assert denied.answered == set()
