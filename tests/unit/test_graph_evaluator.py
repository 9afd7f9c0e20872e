"""The graph and the evaluator check each other: two ways from resources to verdicts that share no index.

Cases with host endpoints are left to the evaluator alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calipy.conformance.netpol_case import Case, State, load, parse_probe
from calipy.datastore.resources import Resource
from calipy.felix.graph.graph import Graph
from calipy.policy.evaluate import EPHEMERAL_PORT
from calipy.policy.judge import Packet, judge
from calipy.policy.snapshot import Snapshot
from calipy.policy.values import ICMP
from tests.support.enforced import Enforced
from tests.support.enforcing import allows, endpoint_of
from tests.support.objects import Object, global_policy, make, namespace_profile, network_policy, pod

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
CASES = sorted((ROOT / "netpol").glob("*.yaml"))


class _Nodes:
    """One graph per node, each fed with everything, and what each enforces."""

    def __init__(self, names: Iterable[str]) -> None:
        self._graphs = {name: Graph(name) for name in names}
        self._present: dict[Any, Any] = {}
        self.enforced = {name: Enforced() for name in self._graphs}

    def move_to(self, resources: Iterable[Resource[Any, Any]]) -> None:
        """Lead every graph from the present state to this one, by differences."""
        new = {resource.key: resource for resource in resources}
        for name, graph in self._graphs.items():
            for key in (*self._present.keys() - new.keys(), *new):
                graph.on_update(key, new.get(key))
            graph.on_in_sync()
            self.enforced[name].apply(graph.flush())
            assert not graph.problems
        self._present = new

    def lets_pass(self, packet: Packet) -> bool:
        """Whether the source's egress and the destination's ingress let a new packet through."""
        for state in self.enforced.values():
            source = endpoint_of(state, str(packet.source))
            if source is not None and not allows(state, source, "egress", packet):
                return False
        for state in self.enforced.values():
            target = endpoint_of(state, str(packet.destination))
            if target is not None and not allows(state, target, "ingress", packet):
                return False
        return True


def _between_pods(case: Case) -> bool:
    return not {"host-endpoint", "node-traffic"} & set(case.requires)


def _packet(state: State, probe: str, source: str, destination: str) -> Packet:
    wanted = parse_probe(probe)
    return Packet(
        state.cluster.addresses(source)[wanted.family],
        state.cluster.addresses(destination)[wanted.family],
        wanted.protocol,
        0 if wanted.icmp else wanted.source_port or EPHEMERAL_PORT,
        wanted.port,
        wanted.icmp,
    )


@pytest.mark.skipif(not CASES, reason="no conformance data; set CALIPY_CONFORMANCE")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem[:40])
def test_conformance_cases_through_the_graph(path: Path) -> None:
    """What two nodes' graphs say, led from state to state, gives every cell of every table between pods and outside."""
    case = load(path)
    if not _between_pods(case):
        return
    nodes = _Nodes(["n1", "n2"])
    for state in case.states():
        nodes.move_to(state.cluster.resources())
        for probe, source, destination, wanted in state.cells():
            packet = _packet(state, probe, source, destination)
            assert nodes.lets_pass(packet) == (wanted == "A"), (state.name, probe, source, destination)


LABELS = ("app", "tier")
VALUES = ("a", "b")
ADDRESSES = ("10.65.1.1", "10.65.1.2", "10.65.2.1", "192.0.2.5")

terms = st.one_of(
    st.builds("{} {} '{}'".format, st.sampled_from(LABELS), st.sampled_from(["==", "!="]), st.sampled_from(VALUES)),
    st.builds("has({})".format, st.sampled_from(LABELS)),
    st.builds("{} in {{'a'}}".format, st.sampled_from(LABELS)),
    st.just("all()"),
)
selectors = st.one_of(
    terms,
    st.builds("!({})".format, terms),
    st.builds("{} && {}".format, terms, terms),
    st.builds("{} || {}".format, terms, terms),
)
maybe_selector = st.one_of(st.just(""), selectors)
ports = st.lists(st.sampled_from([80, "80:90", 53, "http", "dns"]), max_size=2)
nets = st.lists(st.sampled_from(["10.65.1.0/24", "192.0.2.0/24", "10.65.2.1/32"]), max_size=2)
entities = st.fixed_dictionaries({}, optional={
    "selector": maybe_selector,
    "notSelector": maybe_selector,
    "namespaceSelector": st.sampled_from(["", "all()", "team == 'red'", "global()", "!has(team)"]),
    "serviceAccounts": st.sampled_from([{"names": ["robot"]}, {"selector": "kind == 'x'"}]),
    "nets": nets,
    "notNets": nets,
    "ports": ports,
    "notPorts": ports,
})  # fmt: skip
rules = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["Allow", "Deny", "Pass", "Log"]),
        "source": entities,
        "destination": entities,
        "protocol": st.sampled_from(["TCP", "UDP"]),
    },
    optional={"ipVersion": st.sampled_from([4, 6])},
)
specs = st.fixed_dictionaries(
    {"selector": maybe_selector},
    optional={
        "order": st.sampled_from([1, 2, 2.5]),
        "tier": st.sampled_from(["default", "first", "nowhere"]),
        "types": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
        "ingress": st.lists(rules, max_size=3),
        "egress": st.lists(rules, max_size=3),
        "serviceAccountSelector": st.sampled_from(["", "all()", "kind == 'x'"]),
    },
)
pod_labels = st.dictionaries(st.sampled_from(LABELS), st.sampled_from(VALUES))
policies = st.one_of(
    st.builds(lambda name, spec: network_policy(name, **spec), st.sampled_from("pq"), specs),
    st.builds(
        lambda name, spec, spaces: global_policy(name, **spec, namespaceSelector=spaces),
        st.sampled_from("rs"),
        specs,
        st.sampled_from(["", "all()", "team == 'red'"]),
    ),
)


@st.composite
def clusters(draw: st.DrawFn) -> dict[Any, Any]:
    """Three pods on two nodes in two namespaces, an address that two own, a network set, some policies."""
    account = ("kns.shop", "ksa.shop.robot")
    outside = {"nets": [draw(st.sampled_from(["192.0.2.0/24", "10.65.1.1"]))]}
    found: list[Object] = [
        pod("one", ADDRESSES[0], ports={"http": 80}, account="robot", profiles=account, **draw(pod_labels)),
        pod("two", ADDRESSES[1], ports={"dns": 53}, **draw(pod_labels)),
        pod("far", ADDRESSES[2], node="n2", namespace="bank", ports={"http": 90}, **draw(pod_labels)),
        namespace_profile("shop", team=draw(st.sampled_from(["red", "blue"]))),
        make("Profile", "ksa.shop.robot", {"labelsToApply": {"pcsa.kind": "x"}}),
        make("Tier", "first", {"order": 1, "defaultAction": draw(st.sampled_from(["Deny", "Pass"]))}),
        make("GlobalNetworkSet", "g", outside, labels=draw(pod_labels)),
    ]
    if draw(st.booleans()):
        found.append(namespace_profile("bank"))
    if draw(st.booleans()):
        found.append(pod("twin", ADDRESSES[2], node="n3", **draw(pod_labels)))
    found += draw(st.lists(policies, max_size=4))
    return dict(found)


def _by_evaluator(snapshot: Snapshot, packet: Packet) -> bool:
    steps: list[Any] = []
    source, target = (
        [e for e in snapshot.endpoints if address in e.addresses and e.node in {"n1", "n2"}]
        for address in (packet.source, packet.destination)
    )
    return all(judge(snapshot, e, "normal", "egress", packet, steps) == "allow" for e in source) and all(
        judge(snapshot, e, "normal", "ingress", packet, steps) == "allow" for e in target
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(clusters(), min_size=1, max_size=2))
def test_random_policies(states: list[dict[Any, Any]]) -> None:
    """For random clusters, led from one to the next, graph and evaluator give every flow the same verdict."""
    nodes = _Nodes(["n1", "n2"])
    for state in states:
        nodes.move_to(state.values())
        snapshot = Snapshot(state.items())
        assert not snapshot.problems
        for source in ADDRESSES:
            for destination in ADDRESSES:
                for protocol, port in (("tcp", 80), ("tcp", 90), ("udp", 53)):
                    packet = Packet(
                        ipaddress.ip_address(source), ipaddress.ip_address(destination), protocol, EPHEMERAL_PORT, port
                    )
                    if source != destination:
                        assert nodes.lets_pass(packet) == _by_evaluator(snapshot, packet), packet


def test_icmp_codes_are_told_apart() -> None:
    """A rule for one code of an ICMP type leaves the other codes alone, in both."""
    rule = {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 3, "code": 1}}
    state = dict([pod("one", ADDRESSES[0]), namespace_profile("shop"), network_policy("p", ingress=[rule])])
    nodes = _Nodes(["n1"])
    nodes.move_to(state.values())
    snapshot = Snapshot(state.items())
    for code, wanted in ((1, True), (0, False)):
        addresses = ipaddress.ip_address("192.0.2.5"), ipaddress.ip_address(ADDRESSES[0])
        packet = Packet(*addresses, "icmp", icmp=ICMP(3, code))
        assert nodes.lets_pass(packet) == _by_evaluator(snapshot, packet) == wanted
