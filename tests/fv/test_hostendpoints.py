"""Theme ``hostendpoints``: nodes by name of an interface and all their interfaces, on both backends."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fv import Lab
from tests.support.matrix import PATIENCE, Site
from tests.support.objects import global_policy, make, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module", params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two nodes with two and one pods, and a machine outside."""
    with Lab(nodes=2, backend=request.param) as lab:
        here, there = lab.nodes
        lab.external()
        for name, node in (("one", here), ("two", here), ("far", there)):
            lab.pod(name, node, app=name)
        yield lab.settled()


OPEN, SHUT = "tcp46/80 udp46/80 ping46", "!tcp46/80 !udp46/80 !ping46"


@pytest.mark.parametrize("interface", ["eth0", "*"])
def test_without_policy_only_failsafes_pass(lab: Lab, interface: str) -> None:
    """Everything of the node itself is shut both ways but failsafe ports, until a profile opens it.

    Pods are not concerned, nor their node's way to them.
    """
    one, two, far = lab.pods
    here, there = lab.nodes
    (world,) = lab.externals
    endpoint = lab.host_endpoint(interface=interface)
    lab.apply(endpoint)
    lab.expect(
        {
            (world, here): f"{SHUT} tcp46/22",
            (there, here): f"{SHUT} tcp46/179",
            (here, world): f"{SHUT} tcp46/2379",
            (here, far): SHUT,
            (here, one): OPEN,
            (one, two): OPEN,
            (one, far): OPEN,
            (world, one): OPEN,
            (one, world): OPEN,
        }
    )
    lab.apply(lab.host_endpoint(interface=interface, profiles=["kns.fv"]))
    lab.expect({(world, here): OPEN, (here, world): OPEN, (here, far): OPEN})
    lab.delete(endpoint)
    lab.expect({(world, here): OPEN, (here, world): OPEN})


@pytest.mark.parametrize("interface", ["eth0", "*"])
def test_policy(lab: Lab, interface: str) -> None:
    """Policy decides both ways on what begins or ends on the node, and on nothing else."""
    one, *_ = lab.pods
    here, _ = lab.nodes
    (world,) = lab.externals
    lab.apply(lab.host_endpoint(interface=interface))
    into, out = ({"protocol": "TCP", "destination": {"ports": [port]}} for port in (80, 443))
    spec = {"selector": "node == 'n1'", "types": ["Ingress", "Egress"]}
    lab.apply(global_policy("guard", ingress=[rule("Allow", **into)], egress=[rule("Allow", **out)], **spec))
    lab.expect(
        {
            (world, here): "tcp46/80 !tcp46/81 !ping46",
            (here, world): "tcp46/443 !tcp46/80",
            (here, one): OPEN,
            (world, one): OPEN,
        }
    )


def test_apply_on_forward_deny_spares_the_nodes_own_pods(lab: Lab) -> None:
    """With all forwarding denied on every interface the node still reaches its pods."""
    one, two, _ = lab.pods
    here, _ = lab.nodes
    lab.apply(lab.host_endpoint(profiles=["kns.fv"]))
    spec = {"selector": "node == 'n1'", "types": ["Ingress", "Egress"], "applyOnForward": True}
    deny = [rule("Deny", destination={"selector": "has(app)"}), rule("Allow")]
    lab.apply(global_policy("forward", ingress=deny, egress=deny, **spec))
    lab.expect({(here, one): OPEN, (one, two): SHUT})


def test_configured_failsafes(lab: Lab) -> None:
    """Configured failsafe ports take the place of Calico's."""
    here, _ = lab.nodes
    (world,) = lab.externals
    lab.apply(make("FelixConfiguration", "default", {"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 99}]}))
    lab.apply(lab.host_endpoint(interface="eth0"))
    lab.expect({(world, here): "tcp46/99 !tcp46/22"})


def arrived(receiver: Site, sender: Site, family: int, *protocols: int) -> set[int]:
    """Of packets sent under each of some IP protocols, in this order again and again until the last gets through."""
    here, there = (str(site.addresses[family]) for site in (receiver, sender))
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with contextlib.ExitStack() as stack:

        def open_port(protocol: int, address: str) -> socket.socket:
            port = stack.enter_context(socket.socket(kind, socket.SOCK_RAW, protocol))
            port.bind((address, 0))
            port.setblocking(False)
            return port

        ports = {protocol: receiver.ns.call(open_port, protocol, here) for protocol in protocols}
        senders = [sender.ns.call(open_port, protocol, there) for protocol in protocols]
        found: set[int] = set()
        end = time.monotonic() + PATIENCE
        while protocols[-1] not in found:
            assert time.monotonic() < end, f"protocol {protocols[-1]} does not get through"
            for one in senders:
                with contextlib.suppress(PermissionError):  # what the sender's own node denies
                    one.sendto(b"x", (here, 0))
            time.sleep(0.02)
            found |= {protocol for protocol, port in ports.items() if _readable(port)}
    return found


def _readable(port: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(port.recv(100))
    return False


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("rules", "passes", "fails"),
    [
        ([rule("Allow", protocol=253)], 253, 254),
        ([rule("Deny", protocol=253), rule("Allow")], 254, 253),
        ([rule("Allow", notProtocol=253)], 254, 253),
    ],
    ids=["allow", "deny", "not"],
)
def test_ip_protocols_by_number(lab: Lab, rules: list[dict[str, Any]], passes: int, fails: int, family: int) -> None:
    """A number is a protocol as good as a name, both ways: what is allowed passes and what is not does not."""
    (here, _), (world,) = lab.nodes, lab.externals
    spec = {"selector": "has(host-endpoint)", "types": ["Ingress", "Egress"]}
    lab.apply(lab.host_endpoint(interface="eth0"), global_policy("numbers", ingress=rules, egress=rules, **spec))
    lab.forget_connections("-p", str(fails))  # only addresses tell such flows apart: what passed before is established
    for sender, receiver in ((world, here), (here, world)):
        assert arrived(receiver, sender, family, fails, passes) == {passes}
