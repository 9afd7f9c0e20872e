"""Pods of a pool that says so leave the cluster under their node's address: ``nat_outgoing``."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from calipy.kernel import netns as kernel_netns
from tests.support.fv import Lab, Node
from tests.support.matrix import Site
from tests.support.objects import Object, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

POOL = make("IPPool", "pool", {"cidr": "10.65.0.0/16", "blockSize": 26, "natOutgoing": True})


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each, and a machine outside; the pods' pool is one with NAT."""
    with Lab(nodes=2) as lab:
        lab.external()
        for node in lab.nodes:
            lab.pod(f"pod-{node}", node)
        lab.apply(POOL, wait=False)
        yield lab.settled()


def seen(source: Site, destination: Site, *, port: int = 7000) -> tuple[str, int]:
    """Address and port that a packet has where it arrives."""
    with kernel_netns.run_in(destination.ns.fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((destination.ip, port))
        listener.settimeout(10)
        with kernel_netns.run_in(source.ns.fd, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source.ip, 0))
            sender.sendto(b"who am I", (destination.ip, port))
            address: tuple[str, int] = listener.recvfrom(64)[1]
            return address


def rule(node: Node) -> str:
    """The rule that translates."""
    [found] = [rule for rule in node.rules("nat") if rule.startswith("-A cali-nat-outgoing")]
    return found


def configuration(**spec: Any) -> Object:
    return make("FelixConfiguration", "default", spec)


def test_pods_leave_under_their_nodes_address(lab: Lab) -> None:
    """The world sees the node; pods of the pools see each other as they are; without the pool's word, so does all."""
    [node, _], [one, two], [world] = lab.nodes, lab.pods, lab.externals
    assert seen(one, world)[0] == node.ip
    assert seen(one, two)[0] == one.ip
    assert seen(world, one)[0] == world.ip
    lab.apply(make("IPPool", "pool", {"cidr": "10.65.0.0/16", "blockSize": 26, "natOutgoing": False}))
    assert not [rule for rule in node.rules("nat") if rule.startswith("-A cali-nat-outgoing")]
    assert seen(one, world, port=7001)[0] == one.ip


def test_ports_are_chosen_at_random(lab: Lab) -> None:
    """Two pods that use one port at the same time do not meet: MASQUERADE picks the port, fully at random."""
    found = rule(lab.nodes[0])
    assert "--match-set cali40masq-ipam-pools src" in found
    assert "! --match-set cali40network-ip-pools dst" in found
    assert found.endswith("-j MASQUERADE --random-fully")


def test_a_range_of_ports(lab: Lab) -> None:
    """With NATPortRange the translated ports lie within it."""
    [one, _], [world] = lab.pods, lab.externals
    lab.apply(configuration(natPortRange="32000:32010"))
    assert "--to-ports 32000-32010" in " ".join(lab.nodes[0].rules("nat"))
    for port in (7100, 7101, 7102):
        assert 32000 <= seen(one, world, port=port)[1] <= 32010


def test_an_address_and_an_interface(lab: Lab) -> None:
    """NATOutgoingAddress is used instead of the interface's; a filter limits translation to one interface."""
    node, one, [world] = lab.nodes[0], lab.pods[0], lab.externals
    node.ns.address("eth0", "172.20.0.77/24")
    lab.apply(configuration(natOutgoingAddress="172.20.0.77", iptablesNATOutgoingInterfaceFilter="eth0"))
    assert "-o eth0" in rule(node)
    assert "--to-source 172.20.0.77" in rule(node)
    assert seen(one, world, port=7200)[0] == "172.20.0.77"
    lab.apply(configuration(iptablesNATOutgoingInterfaceFilter="other0"))
    assert "-o other0" in rule(node)
    assert seen(one, world, port=7201)[0] == one.ip


def test_hosts_are_excluded_where_asked_for(lab: Lab) -> None:
    """With IPPoolsAndHostIPs pods keep their address towards nodes, too."""
    _, there = lab.nodes
    one = lab.pods[0]
    assert seen(one, there)[0] == lab.nodes[0].ip
    lab.apply(configuration(natOutgoingExclusions="IPPoolsAndHostIPs"))
    assert seen(one, there, port=7301)[0] == one.ip
