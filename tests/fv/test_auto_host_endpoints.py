"""Nodes come under policy by host endpoints that their agents make: ``auto_host_endpoints``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.felix import until
from tests.support.fv import Lab
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, global_policy, make, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

NAME = "n1-auto-hep"
CREATED_BY = {"projectcalico.org/created-by": "calico-kube-controllers"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, a pod on the first, and a machine outside; nothing is automatic yet."""
    with Lab(nodes=2) as lab:
        lab.external()
        lab.pod("web")
        yield lab.settled()


@pytest.fixture(autouse=True)
def switched_off(lab: Lab) -> Iterator[None]:
    """Each test begins and ends without automatic host endpoints."""
    yield
    lab.reset()
    until(lambda: not automatic(lab), timeout=PATIENCE)
    lab.sync()


def switch(auto: str = "Enabled", **config: Any) -> Object:
    controllers = {"node": {"hostEndpoint": {"autoCreate": auto, **config}}}
    return make("KubeControllersConfiguration", "default", {"controllers": controllers})


def automatic(lab: Lab) -> dict[str, Any]:
    """The automatic host endpoints that are stored, by name."""
    found = lab.datastore.client("list", "HostEndpoint")
    return {one.name: one for one in found if CREATED_BY.items() <= one.metadata.labels.items()}


def on_both(lab: Lab) -> None:
    """Wait until both nodes have theirs, in the kernel, too."""
    until(lambda: automatic(lab).keys() == {NAME, "n2-auto-hep"}, timeout=PATIENCE)
    lab.sync()


DENY = global_policy("no-web", selector="rack == 'r1'", types=["Ingress"], ingress=[rule("Deny")])


def test_a_node_comes_under_policy_by_itself(lab: Lab) -> None:
    """Allowed by its profile until policy selects the node's labels; failsafes and pods are spared; off, it is gone."""
    [node, other], [web], [world] = lab.nodes, lab.pods, lab.externals
    _label(lab, node.name, rack="r1")
    lab.apply(switch())
    on_both(lab)
    made = automatic(lab)[NAME]
    assert made.metadata.labels == {"rack": "r1", **CREATED_BY}
    assert made.spec.interface_name == "*"
    assert {node.ip, node.ip6} <= set(made.spec.expected_ips)
    lab.expect({(world, node): "tcp/22,80", (world, other): "tcp/80"})

    lab.apply(DENY)
    lab.expect({(world, node): "tcp/22 !tcp/80", (world, other): "tcp/80", (world, web): "tcp/80"})

    lab.apply(switch("Disabled"))
    until(lambda: not automatic(lab), timeout=PATIENCE)
    lab.sync()
    assert node.felix()["host_endpoints"] == {}
    lab.expect({(world, node): "tcp/80"})


def test_it_follows_the_node(lab: Lab) -> None:
    """A label that the node gets decides at once; an endpoint that somebody deletes comes back."""
    [node, _], [world] = lab.nodes, lab.externals
    lab.apply(switch(), DENY)
    on_both(lab)
    lab.expect({(world, node): "tcp/80"})
    _label(lab, node.name, rack="r1")
    until(lambda: automatic(lab)[NAME].metadata.labels.get("rack") == "r1", timeout=PATIENCE)
    lab.expect({(world, node): "!tcp/80"})
    first = automatic(lab)[NAME].metadata.uid
    lab.datastore.client("delete", "HostEndpoint", NAME)
    until(lambda: NAME in automatic(lab), timeout=PATIENCE)
    assert automatic(lab)[NAME].metadata.uid != first
    lab.sync()
    lab.expect({(world, node): "!tcp/80"})


def test_templates_name_interfaces(lab: Lab) -> None:
    """A template makes one for each interface that it names, instead of the one for all if that is not wanted."""
    template = {"generateName": "nic", "interfacePattern": "^eth", "labels": {"rack": "r1"}}
    [node, _], [world] = lab.nodes, lab.externals
    _change(lab, node.name, interfaces=[{"name": "eth0", "addresses": [node.ip]}])
    lab.apply(switch(createDefaultHostEndpoint="Disabled", templates=[template]), DENY)
    until(lambda: automatic(lab).keys() == {"n1-nic-eth0-auto-hep"}, timeout=PATIENCE)
    lab.sync()
    lab.expect({(world, node): "tcp/22 !tcp/80"})


def test_other_endpoints_are_left_alone(lab: Lab) -> None:
    """One made by hand stays as it is, also under the name of an automatic one, and when the switch goes off."""
    mine = make("HostEndpoint", NAME, {"node": "n1", "interfaceName": "eth0"}, labels={"made": "by-hand"})
    lab.apply(mine)
    lab.apply(switch())
    until(lambda: "n2-auto-hep" in automatic(lab), timeout=PATIENCE)
    log = lab.nodes[0].agent.log
    until(lambda: f"{NAME} exists and is not automatic" in log.read_text(), timeout=PATIENCE)
    lab.apply(switch("Disabled"))
    until(lambda: not automatic(lab), timeout=PATIENCE)
    assert lab.datastore.client("get", "HostEndpoint", NAME).metadata.labels == {"made": "by-hand"}


def test_agreement_writes_nothing(lab: Lab) -> None:
    """An agent that starts anew, and any event of the node, leave endpoints that are right at their revision."""
    node, _ = lab.nodes
    lab.apply(switch())
    on_both(lab)
    before = {name: one.revision for name, one in automatic(lab).items()}
    node.stop()
    node.start()
    lab.sync()
    _label(lab, node.name)
    lab.sync()
    _label(lab, node.name, rack="r7")
    until(lambda: automatic(lab)[NAME].metadata.labels.get("rack") == "r7", timeout=PATIENCE)
    after = {name: one.revision for name, one in automatic(lab).items()}
    assert after["n2-auto-hep"] == before["n2-auto-hep"]
    assert lab.datastore.store("get", f"{_PREFIX}{NAME}").version == 2


_PREFIX = "/calico/resources/v3/projectcalico.org/hostendpoints/"


def _label(lab: Lab, node: str, **labels: str) -> None:
    """Give a Node these labels and no others."""
    found = lab.datastore.client("get", "Node", node)
    lab.apply((_key(node), replace(found, metadata=replace(found.metadata, labels=labels))), wait=False)


def _change(lab: Lab, node: str, **spec: Any) -> None:
    found = lab.datastore.client("get", "Node", node)
    changed = make("Node", node, {"bgp": {"ipv4Address": f"{lab.nodes[0].ip}/24"}, **spec})[1]
    assert changed is not None
    lab.apply((_key(node), replace(found, spec=changed.spec)), wait=False)


def _key(node: str) -> Any:
    return make("Node", node, {})[0]
