"""Themes ``spoof`` and ``rpf``: a pod speaks for its own addresses only."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.matrix import Site

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

_TRANSPARENT = {4: (socket.SOL_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}  # IP_TRANSPARENT, IPV6_TRANSPARENT
PORT = 5000


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
        server.settimeout(10)
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


@pytest.mark.parametrize("family", [4, 6])
def test_false_sources_are_dropped(lab: Lab, family: int) -> None:
    """Addresses of a neighbour, a pod elsewhere, a node, and of nobody do not arrive; the pod's own address does."""
    liar, near, far = lab.pods
    own = str(liar.addresses[family])
    claims = [str(site.addresses[family]) for site in lab.nodes]
    nobody = "10.65.1.99" if family == 4 else "fd65:1::99"
    assert heard(near, liar, *claims, str(far.addresses[family]), nobody, own) == {own}
    assert heard(far, liar, *claims, str(near.addresses[family]), nobody, own) == {own}
