"""Automatic host endpoints: which a node should have, and what is written for that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from calipy.datastore import codec
from calipy.datastore.keys import ResourceKey
from calipy.datastore.syncer import Update
from calipy.errors import InvalidInputError, UndecodableError
from calipy.node import autohep
from calipy.node.autohep import View, Work
from tests.support.objects import make

NODE = make(
    "Node",
    "n1",
    {
        "bgp": {"ipv4Address": "172.16.0.1/24", "ipv6Address": "FD00::1/64", "ipv4IPIPTunnelAddr": "10.65.0.1"},
        "ipv4VXLANTunnelAddr": "10.65.0.2",
        "ipv6VXLANTunnelAddr": "fd65::2",
        "wireguard": {"interfaceIPv4Address": "10.65.0.3", "interfaceIPv6Address": "fd65::3"},
        "addresses": [
            {"address": "172.16.0.1/24", "type": "CalicoNodeIP"},
            {"address": "172.16.0.1", "type": "InternalIP"},
            {"address": "192.0.2.1", "type": "InternalIP"},
            {"address": "198.51.100.1", "type": "ExternalIP"},
        ],
        "interfaces": [
            {"name": "eth0", "addresses": ["172.16.0.1", "192.0.2.9"]},
            {"name": "eth1", "addresses": ["203.0.113.1", "203.0.113.2/24", "fe80::1%eth1"]},
        ],
    },
    labels={"rack": "r1", "role": "worker"},
)
ALL = [
    "172.16.0.1",
    "fd00::1",
    "10.65.0.1",
    "10.65.0.2",
    "fd65::2",
    "10.65.0.3",
    "fd65::3",
    "192.0.2.1",
    "192.0.2.9",
    "203.0.113.1",
]


def settings(auto: str = "Enabled", **config: Any) -> Any:
    controllers = {"node": {"hostEndpoint": {"autoCreate": auto, **config}}}
    return make("KubeControllersConfiguration", "default", {"controllers": controllers})


def viewed(*objects: Any) -> View:
    view = View("n1")
    for key, resource in objects:
        view.observe(Update(key, resource, 7))
    view.in_sync()
    return view


def names(*objects: Any) -> list[str]:
    return [endpoint.name for endpoint in viewed(*objects).work().create]


def test_the_default_endpoint_has_all_that_the_node_says() -> None:
    """Name, interface, addresses in order and without duplicates, labels and profile are those of kube-controllers."""
    [made] = viewed(NODE, settings()).work().create
    assert made.name == "n1-auto-hep"
    assert made.metadata.labels == {
        "rack": "r1",
        "role": "worker",
        "projectcalico.org/created-by": "calico-kube-controllers",
    }
    assert made.metadata.annotations == {}
    assert (made.spec.node, made.spec.interface_name) == ("n1", "*")
    assert list(made.spec.expected_ips) == ALL
    assert made.spec.profiles == ("projectcalico-default-allow",)


@pytest.mark.parametrize(
    "given", [(), (settings("Disabled"),), (make("KubeControllersConfiguration", "default", {}),)], ids=repr
)
def test_nothing_is_made_unless_asked_for(given: Any) -> None:
    """Without configuration, without the controller, or switched off there are none, and those there are go."""
    made = autohep.wanted(NODE[1], autohep.automatic(settings()[1]))["n1-auto-hep"]
    stored = ((ResourceKey("HostEndpoint", made.name), replace(made, revision=5)),)
    work = viewed(NODE, *given, *stored).work()
    assert [endpoint.revision for endpoint in work.delete] == [5]
    assert not work.create
    assert not work.update


def test_a_running_kube_controllers_decides_by_its_environment() -> None:
    """Its AUTO_HOST_ENDPOINTS goes before the configuration, both ways, lest the two undo each other's work."""
    for variable, auto, expected in (("Enabled", "Disabled", ["n1-auto-hep"]), ("disabled", "Enabled", [])):
        key, resource = settings(auto)
        status = {"environmentVars": {"AUTO_HOST_ENDPOINTS": variable}}
        text = json.dumps({**json.loads(codec.encode(resource)), "status": status}).encode()
        assert names(NODE, (key, codec.decode(key, text, 3))) == expected


def test_templates() -> None:
    """One endpoint for the addresses within CIDRs, one for each interface of a pattern; labels go over the node's."""
    by_address = {
        "generateName": "inside",
        "interfaceCIDRs": ["10.65.0.0/16", "fd65::/64"],
        "labels": {"rack": "r2", "zone": "a"},
        "annotations": {"qos.projectcalico.org/dscp": "EF"},
        "nodeSelector": "role == 'worker'",
    }
    by_name = {"generateName": "nic", "interfacePattern": "^eth[0-9]", "interfaceCIDRs": ["192.0.2.0/30"]}
    others = [
        {**by_address, "generateName": "elsewhere", "nodeSelector": "role == 'master'"},
        {"generateName": "nowhere", "interfaceCIDRs": ["8.8.8.0/24"]},
    ]
    config = settings(createDefaultHostEndpoint="Disabled", templates=[by_address, by_name, *others])
    made = {endpoint.name: endpoint for endpoint in viewed(NODE, config).work().create}
    assert list(made) == ["n1-inside-auto-hep", "n1-nic-eth0-auto-hep", "n1-nic-eth1-auto-hep"]
    inside = made["n1-inside-auto-hep"]
    assert inside.spec.interface_name == ""
    assert inside.spec.expected_ips == ("10.65.0.1", "10.65.0.2", "fd65::2", "10.65.0.3", "fd65::3")
    assert inside.metadata.labels["rack"] == "r2"
    assert inside.metadata.annotations == {"qos.projectcalico.org/dscp": "EF"}
    assert made["n1-nic-eth0-auto-hep"].spec.interface_name == "eth0"
    assert made["n1-nic-eth0-auto-hep"].spec.expected_ips == ("192.0.2.1", "172.16.0.1", "192.0.2.9")
    assert made["n1-nic-eth1-auto-hep"].spec.expected_ips == ("192.0.2.1", "203.0.113.1")


def test_a_template_that_cannot_be_used_changes_nothing() -> None:
    """The error names the field; neither are endpoints made nor taken away."""
    for bad, field in (
        ({"generateName": "x", "interfacePattern": "("}, "interfacePattern"),
        ({"generateName": "x", "interfaceCIDRs": ["here"]}, "interfaceCIDRs"),
        ({"generateName": "x", "nodeSelector": "=="}, ""),
        ({"interfacePattern": "eth"}, "generateName"),
    ):
        with pytest.raises(InvalidInputError) as raised:
            viewed(NODE, settings(templates=[bad])).work()
        assert field in raised.value.field


def test_what_agrees_is_left_alone_and_what_differs_is_changed() -> None:
    """A second look writes nothing; labels and addresses follow the node; profiles and ports given by others stay."""
    made = autohep.wanted(NODE[1], autohep.automatic(settings()[1]))["n1-auto-hep"]
    kept = replace(made, revision=5, spec=replace(made.spec, profiles=("mine",)))
    key = ResourceKey("HostEndpoint", made.name)
    assert viewed(NODE, settings(), (key, kept)).work() == Work()

    moved = make("Node", "n1", {"bgp": {"ipv4Address": "172.16.0.2/24"}}, labels={"rack": "r9"})
    [changed] = viewed(moved, settings(), (key, kept)).work().update
    assert changed.revision == 5
    assert changed.spec.expected_ips == ("172.16.0.2",)
    assert changed.metadata.labels["rack"] == "r9"
    assert "role" not in changed.metadata.labels


def test_only_ones_own_labelled_endpoints_are_touched() -> None:
    """Host endpoints without the label, or of other nodes, are none of its business, whatever their names."""
    spec = {"node": "n1", "interfaceName": "*"}
    by_hand = make("HostEndpoint", "n1-old-auto-hep", spec)
    other = make("HostEndpoint", "n2-auto-hep", {**spec, "node": "n2"}, labels={autohep.CREATED_BY: autohep.CREATOR})
    stale = make("HostEndpoint", "n1-old", spec, labels={autohep.CREATED_BY: autohep.CREATOR})
    work = viewed(NODE, settings("Disabled"), by_hand, other, stale).work()
    assert [endpoint.name for endpoint in work.delete] == ["n1-old"]
    assert viewed(NODE, settings(), by_hand).work().delete == ()


def test_nothing_is_decided_on_what_is_not_known() -> None:
    """Before in-sync, and while node or settings cannot be decoded, nothing is written."""
    stale = make("HostEndpoint", "n1-old", {"node": "n1"}, labels={autohep.CREATED_BY: autohep.CREATOR})
    view = View("n1")
    view.observe(Update(*stale, 7))
    assert not view.work()
    view.in_sync()
    assert view.work().delete
    error = UndecodableError("no JSON", key="x")
    assert view.observe(Update(NODE[0], None, 8, error))
    assert not view.work()
    view.observe(Update(*NODE, 9))
    assert view.work().delete


def test_events_that_do_not_matter_do_not_wake() -> None:
    """Other nodes, other host endpoints and other kinds are passed over."""
    view = viewed(NODE, settings())
    other = make("HostEndpoint", "x", {"node": "n2", "interfaceName": "*"})
    for key, resource in (make("Node", "n2", {}), other, make("IPPool", "p", {"cidr": "10.0.0.0/8"})):
        assert not view.observe(Update(key, resource, 8))
    assert not view.observe(Update(other[0], None, 9))


def test_long_names_become_digests() -> None:
    """A name beyond 253 characters is replaced by a digest; lower case, and the same each time."""
    key, resource = make("Node", "n" * 250, {"bgp": {"ipv4Address": "172.16.0.1/24"}})
    view = View(key.name)
    view.observe(Update(key, resource, 1))
    view.observe(Update(*settings(), 1))
    view.in_sync()
    [made] = view.work().create
    assert made.name == "fsetawr4cyeogg79xle7sas6qytoq8j2wa55iiu0owe-auto-hep"
