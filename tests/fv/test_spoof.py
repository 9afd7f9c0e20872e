"""Themes ``spoof`` and ``rpf``: a pod speaks for its own addresses only."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from calipy.policy.kubernetes_pod import SOURCE_PREFIXES, convert_pod
from tests.support.felix import until
from tests.support.fv import POD_NAMESPACE, Lab, Pod
from tests.support.matrix import PATIENCE, Site
from tests.support.objects import Object, make

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

_TRANSPARENT = {4: (socket.SOL_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}  # IP_TRANSPARENT, IPV6_TRANSPARENT
_TCP_REPAIR = 19
PORT = 5000
EXCEPTIONS = {4: "192.0.2.0/25", 6: "2001:db8::/64"}
INSIDE = {4: ("192.0.2.0", "192.0.2.127"), 6: ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff")}
OUTSIDE = {4: ("192.0.1.255", "192.0.2.128"), 6: ("2001:db7:ffff:ffff:ffff::", "2001:db8:0:1::")}


@pytest.fixture(scope="module", params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two pods on one node and one on another."""
    with Lab(nodes=2, backend=request.param) as lab:
        here, there = lab.nodes
        for name, node in (("liar", here), ("near", here), ("far", there)):
            lab.pod(name, node)
        yield lab.settled()


def heard(receiver: Site, sender: Site, *claims: str) -> set[str]:
    """Source addresses that arrive, of datagrams that a sender sends under each of some addresses, its own last."""
    family = 6 if ":" in claims[-1] else 4
    target = str(receiver.addresses[family])
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET

    def open_server() -> socket.socket:
        server = socket.socket(kind, socket.SOCK_DGRAM)
        server.bind((target, PORT))
        server.settimeout(PATIENCE)
        return server

    def send() -> None:
        for claim in claims:
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(*_TRANSPARENT[family], 1)
                sock.bind((claim, 0))
                sock.sendto(b"x", (target, PORT))

    found: set[str] = set()
    with contextlib.closing(receiver.ns.call(open_server)) as server:
        sender.ns.call(send)
        while claims[-1] not in found:
            found.add(server.recvfrom(10)[1][0])
    return found


def heard_in_the_end(awaited: tuple[str, ...], receiver: Site, sender: Site, *claims: str) -> set[str]:
    """What arrives, again and again until some addresses were among it: datagrams may overtake each other."""
    found: set[str] = set()

    def hear() -> bool:
        found.update(heard(receiver, sender, *claims))
        return found.issuperset(awaited)

    until(hear, timeout=PATIENCE)
    return found


def annotated(pod: Pod, *prefixes: str) -> Object:
    """The endpoint of a pod whose annotation names more source addresses, as it follows from Kubernetes' pod."""
    annotations = {SOURCE_PREFIXES: json.dumps(prefixes)}
    document = {
        "metadata": {"name": pod.name, "namespace": POD_NAMESPACE, "annotations": annotations},
        "spec": {"nodeName": pod.node.name},
        "status": {"podIPs": [{"ip": pod.ip}, {"ip": pod.ip6}]},
    }
    endpoint = convert_pod(document)
    return pod.object()[0], replace(endpoint, spec=replace(endpoint.spec, interface_name=pod.interface))


@pytest.mark.parametrize("family", [4, 6])
def test_false_sources_are_dropped(lab: Lab, family: int) -> None:
    """Addresses of a neighbour, a pod elsewhere, a node, and of nobody do not arrive; the pod's own address does."""
    liar, near, far = lab.pods
    own = str(liar.addresses[family])
    claims = [str(site.addresses[family]) for site in lab.nodes]
    nobody = "10.65.1.99" if family == 4 else "fd65:1::99"
    assert heard(near, liar, *claims, str(far.addresses[family]), nobody, own) == {own}
    assert heard(far, liar, *claims, str(near.addresses[family]), nobody, own) == {own}


@pytest.mark.parametrize("family", [4, 6])
def test_exceptions_by_annotation(lab: Lab, family: int) -> None:
    """A pod may use exactly the prefixes of its annotation as well, and nobody else may; also to another node."""
    liar, near, far = lab.pods
    lab.apply(make("FelixConfiguration", "default", {"workloadSourceSpoofing": "Any"}))
    lab.apply(annotated(liar, *EXCEPTIONS.values()))
    inside, own = INSIDE[family], str(liar.addresses[family])
    claims = (*OUTSIDE[family], str(near.addresses[family]), *inside, own)
    for receiver in (near, far):
        assert heard_in_the_end(inside, receiver, liar, *claims) == {*inside, own}
    honest = str(near.addresses[family])
    assert heard(far, near, *inside, honest) == {honest}
    lab.apply(liar.object())
    assert heard(far, liar, *claims) == {own}


def test_exceptions_where_the_node_allows_none(lab: Lab) -> None:
    """Without WorkloadSourceSpoofing=Any such an endpoint is not valid: nothing of the pod passes, and status tells."""
    liar, near, _ = lab.pods
    node, _ = lab.nodes
    lab.apply(annotated(liar, *EXCEPTIONS.values()))
    lab.expect({(liar, near): "!tcp46/80", (near, liar): "!tcp46/80"})
    assert any("allowSpoofedSourcePrefixes" in warning for warning in node.felix()["warnings"])
    lab.apply(make("FelixConfiguration", "default", {"workloadSourceSpoofing": "Any"}))
    lab.expect({(liar, near): "tcp46/80"})
    assert not node.felix()["warnings"]


@pytest.mark.parametrize("family", [4, 6])
def test_a_stray_segment_is_reset(lab: Lab, family: int) -> None:
    """A segment of a connection that neither tracking nor the other end knows gets through, and its RST comes back."""
    client, *servers = lab.pods
    for server in servers:
        address = str(server.addresses[family])
        listener = server.ns.call(_server, address)
        with contextlib.closing(listener), contextlib.closing(client.ns.call(_connection, address)) as connection:
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            accepted.close()  # in repair, it is gone without a word
            lab.forget_connections("-p", "tcp", "--orig-port-dst", str(PORT))
            connection.send(b"x")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def _server(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, PORT), family=family)
    listener.settimeout(PATIENCE)
    return listener


def _connection(address: str) -> socket.socket:
    return socket.create_connection((address, PORT), timeout=PATIENCE)
