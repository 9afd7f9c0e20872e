"""Theme ``named_ports``: ports by the names that endpoints give them, alone and beside numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

PROTOCOLS = {"TCP": 1100, "UDP": 1101, "SCTP": 1102}
"""Protocol → the port of that protocol that pods call ``shared``."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two servers on two nodes and two clients; all call the same ports ``shared``, the first server one ``own``."""
    shared = [("shared", protocol, port) for protocol, port in PROTOCOLS.items()]
    with Lab(nodes=2) as lab:
        here, there = lab.nodes
        lab.pod("first", here, role="server", app="first", ports=[*shared, ("own", "TCP", 1200)])
        lab.pod("second", there, role="server", app="second", ports=shared)
        lab.pod("near", here, app="near", ports=shared)
        lab.pod("far", there, app="far", ports=shared)
        yield lab.settled()


def serving(*rules: dict) -> Object:
    """The servers' policy."""
    return global_policy("ports", selector="role == 'server'", types=["Ingress"], ingress=list(rules))


def numbers(count: int) -> list[int]:
    """So many numeric ports, none next to another."""
    return [4000 + 2 * n for n in range(count)]


@pytest.mark.parametrize("negated", [False, True], ids=["is", "is-not"])
@pytest.mark.parametrize("count", [0, 1, 16])
def test_destination(lab: Lab, count: int, negated: bool) -> None:
    """A name beside no, one and more numbers than a rule has room for: each protocol by its own port of that name."""
    first, second, near, far = lab.pods
    ports = {"notPorts" if negated else "ports": ["shared", *numbers(count)]}
    lab.apply(serving(*(rule("Allow", protocol=protocol, destination=ports) for protocol in PROTOCOLS)))
    listed, others = ("!", "") if negated else ("", "!")
    for one, two in ((first, near), (first, far), (second, near)):
        words = []
        for protocol, port in PROTOCOLS.items():
            word = protocol.lower()
            inside = [port, *({numbers(count)[0], numbers(count)[-1]} if count else ())]
            outside = [1200, 4001, *(p for p in PROTOCOLS.values() if p != port)]
            words += [f"{listed}{word}46/{number}" for number in inside]
            words += [f"{others}{word}46/{number}" for number in outside]
        lab.expect({(two, one): " ".join(words)})


@pytest.mark.parametrize("negated", [False, True], ids=["is", "is-not"])
@pytest.mark.parametrize("count", [0, 16])
def test_source(lab: Lab, count: int, negated: bool) -> None:
    """A name for the port that a packet comes from is the sender's."""
    first, _, near, far = lab.pods
    ports = {"notPorts" if negated else "ports": ["shared", *numbers(count)]}
    lab.apply(serving(*(rule("Allow", protocol=protocol, source=ports) for protocol in ("TCP", "UDP"))))
    listed, others = ("!", "") if negated else ("", "!")
    inside = [1100, *numbers(count)[-1:]]
    words = [f"{listed}tcp46/80+sport={port}" for port in inside]
    words += [f"{others}tcp46/80+sport={port}" for port in (1101, 4001)]
    words += [f"{listed}udp46/80+sport=1101", f"{others}udp46/80+sport=1100"]
    lab.expect({(near, first): " ".join(words), (far, first): " ".join(words)})


def test_a_name_that_only_some_have(lab: Lab) -> None:
    """The port of a name that one endpoint has is open there, and the same number is not elsewhere."""
    first, second, near, far = lab.pods
    lab.apply(serving(rule("Allow", protocol="TCP", destination={"ports": ["own"]})))
    lab.expect({(near, first): "tcp46/1200 !tcp46/1100", (far, second): "!tcp46/1200 !tcp46/1100"})
    lab.apply(second.object(ports=[("own", "TCP", 1300)]))
    lab.expect({(near, first): "tcp46/1200 !tcp46/1300", (far, second): "!tcp46/1200 tcp46/1300"})
    lab.apply(serving(rule("Allow", protocol="TCP", destination={"ports": ["nobody-has-it"]})))
    lab.expect({(near, first): "!tcp46/1200", (far, second): "!tcp46/1300"})


def test_with_selectors(lab: Lab) -> None:
    """A selector on the name's side and one on the other side both have to hold."""
    first, second, near, far = lab.pods
    destination = {"selector": "app == 'first'", "ports": ["shared"]}
    lab.apply(serving(rule("Allow", protocol="TCP", source={"selector": "app == 'near'"}, destination=destination)))
    lab.expect({(near, first): "tcp46/1100 !tcp46/1200", (far, first): "!tcp46/1100", (near, second): "!tcp46/1100"})
    not_there = {"notSelector": "app == 'first'", "ports": ["shared"]}
    lab.apply(serving(rule("Allow", protocol="TCP", destination=not_there)))
    lab.expect({(near, first): "!tcp46/1100", (near, second): "tcp46/1100", (far, second): "tcp46/1100 !tcp46/1200"})
    but = {"selector": "app == 'first'", "notPorts": ["shared"]}
    lab.apply(serving(rule("Allow", protocol="TCP", destination=but)))
    lab.expect({(near, first): "!tcp46/1100 tcp46/1200", (near, second): "!tcp46/1100,1200"})


def test_egress(lab: Lab) -> None:
    """In egress a name is the receiver's: the client's own port of that name does not matter."""
    first, second, near, _ = lab.pods
    own = rule("Allow", protocol="TCP", destination={"ports": ["own"]})
    lab.apply(global_policy("ports", selector="app == 'near'", types=["Egress"], egress=[own]))
    lab.expect({(near, first): "tcp46/1200 !tcp46/1100", (near, second): "!tcp46/1200"})


def test_deny_by_name(lab: Lab) -> None:
    """A name in a denying rule shuts that port and leaves the rest to the next rule."""
    first, second, near, _ = lab.pods
    deny = rule("Deny", protocol="TCP", destination={"ports": ["shared"]})
    lab.apply(serving(deny, rule("Allow")))
    for server in (first, second):
        lab.expect({(near, server): "!tcp46/1100 tcp46/1101,1200 udp46/1101 ping46"})


def test_without_protocol(lab: Lab) -> None:
    """A name alone means each endpoint's ports of that name whatever their protocol, and no other protocol's."""
    first, _, near, _ = lab.pods
    lab.store(serving(rule("Allow", destination={"ports": ["shared"]})))
    lab.expect({(near, first): "tcp46/1100 udp46/1101 sctp46/1102 !udp46/1100 !tcp46/1101,1200 !ping46"})
