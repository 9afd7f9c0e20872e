"""Links as written: forms, defaults, checks."""

from __future__ import annotations

import pytest

from calipy.containerlab import linkspec, topology
from calipy.containerlab.errors import TopologyError
from calipy.containerlab.model import Link, Topology

NODES = """
name: t
topology:
  defaults: {kind: linux, image: calipy/plain:dev}
  nodes:
    a: {}
    b: {}
    side: {network-mode: "container:a"}
    free: {network-mode: none}
    lan: {kind: bridge}
    box: {kind: host}
    br0|b: {kind: bridge, network-mode: "container:b"}
  links:
"""


def load(*links: str) -> Topology:
    text = NODES + "".join(f"    - {link}\n" for link in links)
    return topology.load(text, file="/labs/x.clab.yml", environ={})


def one(link: str) -> Link:
    return load(link).links[0]


def test_a_brief_link_is_a_veth_with_containerlabs_mtu() -> None:
    """9500 where none is stated."""
    link = one('endpoints: ["a:eth1", "b:eth1"]')
    assert (link.type, str(link), link.mtu) == ("veth", "a:eth1 -- b:eth1", 9500)


def test_a_brief_link_hands_its_addresses_to_its_ends_in_order() -> None:
    """One may be left out."""
    link = one('{endpoints: ["a:eth1", "b:eth1"], mtu: 1500, ipv4: ["10.0.0.1/24"], ipv6: ["", "fd00::2/64"]}')
    assert link.b is not None
    assert (link.a.ipv4, link.a.ipv6, link.b.ipv4, link.b.ipv6) == ("10.0.0.1/24", "", "", "fd00::2/64")


@pytest.mark.parametrize(
    ("text", "kind", "node"),
    [
        ('endpoints: ["host:h1", "a:eth1"]', "host", "host"),
        ('endpoints: ["a:eth1", "mgmt-net:m1"]', "mgmt-net", "mgmt-net"),
        ('endpoints: ["macvlan:eno1", "a:eth1"]', "macvlan", "host"),
        ("{type: host, host-interface: h1, endpoint: {node: a, interface: eth1}}", "host", "host"),
    ],
)
def test_special_names_make_special_links(text: str, kind: str, node: str) -> None:
    """Whichever end they are at, the node's end comes first."""
    link = one(text)
    assert link.b is not None
    assert (link.type, str(link.a), link.b.node) == (kind, "a:eth1", node)


def test_extended_links_keep_mac_vars_and_addresses() -> None:
    """MACs are normalised."""
    link = one(
        '{type: veth, vars: {cost: 7}, endpoints: [{node: a, interface: e, mac: "02-00-5E-10-00-01", vars: {x: [1]}}, '
        "{node: b, interface: e, ipv4: 10.0.0.2/24}]}"
    )
    assert link.b is not None
    assert (link.a.mac, link.a.vars, link.b.ipv4, link.vars) == (
        "02:00:5e:10:00:01",
        {"x": [1]},
        "10.0.0.2/24",
        {"cost": 7},
    )


def test_a_vxlan_link_has_containerlabs_port() -> None:
    """14789, unless the file says otherwise."""
    link = one("{type: vxlan, remote: 192.0.2.1, vni: 7, endpoint: {node: a, interface: eth1}}")
    assert (link.dst_port, link.mtu, [str(end) for end in link.endpoints]) == (14789, 0, ["a:eth1"])


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ('endpoints: ["a:eth1"]', "2 endpoints, 1 given"),
        ('endpoints: ["a:e1", "b:e1", "a:e2"]', "3 given"),
        ("endpoints: []", "0 given"),
        ('endpoints: ["a", "b:eth1"]', "'a'"),
        ('endpoints: ["a:", "b:eth1"]', "'a:'"),
        ('endpoints: ["a:eth1:x", "b:eth1"]', "a:eth1:x"),
        ("endpoints: [1, 2]", "'1'"),
        ('endpoints: ["a:eth1", "z:eth1"]', "'z'"),
        ('endpoints: ["a:eth0", "b:eth1"]', "eth0"),
        ('endpoints: ["side:eth0", "b:eth1"]', "eth0"),
        ('endpoints: ["a:lo", "b:eth1"]', "lo"),
        ('endpoints: ["a:eth1", "a:eth1"]', "a:eth1 is used twice"),
        ('{endpoints: ["a:eth1", "b:eth1"], mtu: 70000}', "70000"),
        ('{endpoints: ["a:eth1", "b:eth1"], mtu: 20}', "20"),
        ('{endpoints: ["a:eth1", "b:eth1"], mtu: "1500"}', "mtu"),
        ('{endpoints: ["a:eth1", "b:eth1"], tc: {}}', "'tc'"),
        ('{endpoints: ["a:eth1", "b:eth1"], ipv4: ["10.0.0.300/24"]}', "10.0.0.300/24"),
        ('{endpoints: ["a:eth1", "b:eth1"], ipv4: ["fd00::1/64"]}', "fd00::1/64"),
        ("{type: vlan, endpoints: []}", "vlan"),
        ("{type: veth, endpoints: [{node: a, iface: e}, {node: b, interface: e}]}", "iface"),
        ('{type: veth, endpoints: [{node: a, interface: e, mac: "zz:0"}, {node: b, interface: e}]}', "zz:0"),
        (
            '{type: veth, endpoints: [{node: a, interface: e, mac: "01:00:00:00:00:01"}, {node: b, interface: e}]}',
            "multicast",
        ),
        ("{type: host, endpoint: {node: a, interface: e}}", "host-interface"),
        ("{type: macvlan, host-interface: x, mode: shared, endpoint: {node: a, interface: e}}", "shared"),
        ("{type: vxlan, vni: 7, endpoint: {node: a, interface: e}}", "remote"),
        ("{type: vxlan, remote: here, vni: 7, endpoint: {node: a, interface: e}}", "here"),
        ('endpoints: ["a:eth1", "host:a-name-of-twenty-chr"]', "a-name-of-twenty-chr"),
    ],
)
def test_a_wrong_link_is_refused_by_name(text: str, element: str) -> None:
    """The message has the link's place and the offending text."""
    with pytest.raises(TopologyError) as caught:
        load(text)
    assert element in str(caught.value)
    assert "topology.links[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('endpoints: ["a:eth1", "b:eth1"]', 'endpoints: ["a:eth1", "b:eth2"]'),
        ('endpoints: ["a:eth1", "host:h"]', 'endpoints: ["b:eth1", "host:h"]'),
        ('endpoints: ["a:eth1", "host:h"]', 'endpoints: ["b:eth1", "lan:h"]'),
        ('endpoints: ["a:eth1", "host:h"]', 'endpoints: ["b:eth1", "box:h"]'),
        ('endpoints: ["a:eth1", "b:eth1"]', 'endpoints: ["side:eth1", "b:eth2"]'),
        ('endpoints: ["a:p1", "b:p1"]', 'endpoints: ["a:eth2", "br0|b:p1"]'),
        ('endpoints: ["a:Eth1/1", "b:eth1"]', 'endpoints: ["a:Eth1-1", "b:eth2"]'),
    ],
)
def test_an_interface_cannot_be_twice_in_one_namespace(first: str, second: str) -> None:
    """Whatever nodes share it: the host's, another node's, a bridge's."""
    with pytest.raises(TopologyError, match="used twice"):
        load(first, second)


def test_a_node_without_management_may_use_eth0() -> None:
    """network-mode none leaves the name free."""
    assert str(one('endpoints: ["free:eth0", "a:eth1"]').a) == "free:eth0"


def test_names_that_the_kernel_cannot_take_become_alternative_names() -> None:
    """The made-up name is stable and short; the wanted one loses / and blanks."""
    assert linkspec.device_name("a", "eth1") == "eth1"
    made = linkspec.device_name("a", "a-name-of-twenty-chr")
    assert (
        made == linkspec.device_name("a", "a-name-of-twenty-chr") != linkspec.device_name("b", "a-name-of-twenty-chr")
    )
    assert len(made) == 13
    assert linkspec.alternative_name("Gi0/0/0/1 x") == "Gi0-0-0-1-x"
    assert linkspec.ownership_name("a", "eth1").startswith("clab-o-")
