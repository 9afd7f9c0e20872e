"""What pods and nodes send out of the cluster carries the code point that their endpoints ask for: ``dscp``."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from calipy.datastore.resources import QoSControls
from calipy.kernel import netns as kernel_netns
from calipy.kernel import process
from tests.support.felix import until
from tests.support.fv import Lab
from tests.support.matrix import PATIENCE, Site
from tests.support.objects import Object, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

ANNOTATION = "qos.projectcalico.org/dscp"
EF, AF11, CS1 = 46, 10, 8
_SOCKETS = {
    4: (socket.AF_INET, socket.IPPROTO_IP, socket.IP_RECVTOS, socket.IP_TOS),
    6: (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS),
}
"""Family, level, option that asks for the byte with the code point, and the kind under which it comes."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes with a pod each, and a machine outside; nobody asks for a code point."""
    with Lab(nodes=2) as lab:
        lab.external()
        for node in lab.nodes:
            lab.pod(f"pod-{node}", node)
        lab.apply(make("IPPool", "pool6", {"cidr": "fd65::/16", "blockSize": 122}), wait=False)
        _probe(lab)
        yield lab.settled()


def _probe(lab: Lab) -> None:
    """Skip where the kernel has no target DSCP."""
    rule = ("-t", "mangle", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DSCP", "--set-dscp", "1")
    done = process.run([f"iptables-{lab.backend}", "-w", *rule], netns_fd=lab.externals[0].ns.fd)
    if done.returncode:
        pytest.skip(f"no target DSCP: {done.stderr.strip()}")


def seen(source: Site, destination: Site, *, family: int = 4) -> int:
    """The code point of a UDP packet where it arrives."""
    kind, level, option, kept = _SOCKETS[family]
    place = str(destination.addresses[family])
    with kernel_netns.run_in(destination.ns.fd, socket.socket, kind, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(level, option, 1)
        listener.bind((place, 0))
        listener.settimeout(10)
        with kernel_netns.run_in(source.ns.fd, socket.socket, kind, socket.SOCK_DGRAM) as sender:
            sender.bind((str(source.addresses[family]), 0))
            sender.sendto(b"which", (place, listener.getsockname()[1]))
            _, ancillary, _, _ = listener.recvmsg(64, 64)
    [data] = [data for at, name, data in ancillary if (at, name) == (level, kept)]
    return int(struct.unpack("i", data)[0] if family == 6 else data[0]) >> 2


def marking(lab: Lab, value: int | str, pod: int = 0) -> Object:
    """A pod's endpoint with a code point in its spec."""
    found = lab.pods[pod]
    key, resource = found.object()
    assert resource is not None
    return key, replace(resource, spec=replace(resource.spec, qos_controls=QoSControls(dscp=value)))


def rules(lab: Lab, chain: str, node: int = 0, family: int = 4) -> list[str]:
    return [rule for rule in lab.nodes[node].rules("mangle", family) if rule.startswith(f"-A {chain} ")]


def test_a_pods_packets_are_marked_outside_only(lab: Lab) -> None:
    """Outside and at another node the mark is seen, at pods not; nobody else is marked; off, the rules are gone."""
    [one, two], [world], [node, other] = lab.pods, lab.externals, lab.nodes
    assert seen(one, world) == 0
    assert rules(lab, "cali-POSTROUTING") == rules(lab, "cali-egress-dscp") == []
    lab.apply(marking(lab, "EF"))
    for family in (4, 6):
        assert seen(one, world, family=family) == EF
        assert seen(one, two, family=family) == 0
        assert seen(two, world, family=family) == 0
    assert seen(one, other) == EF
    assert seen(world, one) == 0
    assert f"{node.ip}\n" in node.ns.run("ipset", "list", "cali40this-host")
    [rule] = rules(lab, "cali-egress-dscp")
    assert f" -s {one.ip}/32 " in rule
    assert rule.endswith(" -j DSCP --set-dscp 0x2e")

    lab.apply(marking(lab, AF11))
    assert seen(one, world) == AF11
    lab.apply(one.object())
    assert seen(one, world) == 0
    assert rules(lab, "cali-POSTROUTING") == rules(lab, "cali-egress-dscp") == []


def test_the_mark_survives_translation(lab: Lab) -> None:
    """Under the node's address, where the pool is one with natOutgoing, the mark is the pod's."""
    pool = {"cidr": "10.65.0.0/16", "blockSize": 26, "natOutgoing": True}
    lab.apply(make("IPPool", "pool", pool), marking(lab, EF))
    assert seen(lab.pods[0], lab.externals[0]) == EF


def test_a_host_endpoint_marks_what_its_node_sends(lab: Lab) -> None:
    """By the annotation, for its expected addresses, also with other parameters; what others send stays as it is."""
    [one, _], [world], [node, other] = lab.pods, lab.externals, lab.nodes
    key, endpoint = make(
        "HostEndpoint",
        "uplink",
        {
            "node": "n1",
            "interfaceName": "eth0",
            "expectedIPs": [node.ip, node.ip6],
            "profiles": ["projectcalico-default-allow"],
        },
        annotations={ANNOTATION: "CS1"},
    )
    lab.apply((key, endpoint))
    for family in (4, 6):
        assert seen(node, world, family=family) == CS1
        assert seen(other, world, family=family) == 0
    assert seen(one, world) == 0
    lab.apply(make("FelixConfiguration", "default", {"logPrefix": "another"}))
    assert seen(node, world) == CS1
    lab.delete(key)
    assert seen(node, world) == 0


def test_addresses_of_the_node_are_followed(lab: Lab) -> None:
    """What a pod sends to an address that the node gets later is not marked; with the last pod the set is empty."""
    [node, _] = lab.nodes
    lab.apply(marking(lab, EF))
    node.ns.address("eth0", "172.20.0.78/24")
    lab.defer(node.ns.run, "ip", "address", "del", "172.20.0.78/24", "dev", "eth0")
    until(lambda: "172.20.0.78\n" in node.ns.run("ipset", "list", "cali40this-host"), timeout=PATIENCE)
    assert seen(lab.pods[0], node.at("172.20.0.78")) == 0
    lab.apply(lab.pods[0].object())
    assert "172.20" not in node.ns.run("ipset", "list", "cali40this-host")


def test_it_is_there_again_after_a_restart(lab: Lab) -> None:
    """Rules mark without an agent, too; one that starts anew has them as they are."""
    [one, _], [world], [node, _] = lab.pods, lab.externals, lab.nodes
    lab.apply(marking(lab, EF))
    node.stop()
    assert seen(one, world) == EF
    node.start()
    lab.sync()
    assert seen(one, world) == EF
    assert len(rules(lab, "cali-egress-dscp")) == 1
    assert node.felix()["drift"] == []
