"""What a lab makes of a topology, without a machine: addresses, environment, differences, outputs, names."""

from __future__ import annotations

import json
import struct

import msgspec
import pytest

from calipy.containerlab import environment, images, inventories, management, outputs, resolver, topology
from calipy.containerlab.errors import LabError, TopologyError
from calipy.containerlab.management import Addresses
from calipy.containerlab.model import Management, Topology
from calipy.containerlab.plan import plan

THREE = """
name: t
mgmt: {ipv4-subnet: 10.9.0.0/29, ipv6-subnet: "fd00:9::/64"}
topology:
  defaults: {kind: linux, image: "calipy/plain:dev"}
  nodes:
    a: {labels: {site/rack: r1, ansible-group: routers}, mgmt-ipv4: 10.9.0.5}
    b: {env: {no_proxy: example.test}, hostname: bee.x}
    c: {network-mode: none}
  links:
    - {endpoints: ["a:eth1", "b:eth1"], mtu: 1500, vars: {cost: 1}}
"""


def load(text: str = THREE) -> Topology:
    return topology.load(text, file="/labs/x.clab.yml", environ={})


def test_a_topology_survives_the_way_to_the_supervisor() -> None:
    """JSON and back is the same value."""
    lab = load()
    assert msgspec.json.decode(msgspec.json.encode(lab), type=Topology) == lab


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{}", ("172.20.20.0/24", "172.20.20.1", "3fff:172:20:20::/64", "3fff:172:20:20::1")),
        ("{ipv4-subnet: 10.0.0.0/24}", ("10.0.0.0/24", "10.0.0.1", "", "")),
        ('{ipv4-subnet: "", ipv6-subnet: "fd00::/64"}', (management.AUTO_IPV4, "172.18.0.1", "fd00::/64", "fd00::1")),
        ("{ipv4-subnet: 10.0.0.0/24, ipv4-gw: 10.0.0.254}", ("10.0.0.0/24", "10.0.0.254", "", "")),
        ("{ipv4-subnet: auto}", (management.AUTO_IPV4, "172.18.0.1", "", "")),
    ],
)
def test_management_defaults(section: str, expected: tuple[str, str, str, str]) -> None:
    """Both defaults only when both are absent; gateways are the first addresses."""
    network = load(f"name: t\nmgmt: {section}\ntopology: {{nodes: {{n: {{kind: linux, image: i}}}}}}").management
    assert (network.ipv4_subnet, network.ipv4_gateway, network.ipv6_subnet, network.ipv6_gateway) == expected


@pytest.mark.parametrize(
    "section",
    ["{ipv4-subnet: 10.300.0.0/24}", "{ipv4-subnet: 10.0.0.5/24}", "{ipv4-subnet: 10.0.0.0/24, ipv4-gw: 10.1.0.1}",
     "{ipv4-range: fd00::/64}", "{subnet: 10.0.0.0/24}"],
)  # fmt: skip
def test_a_wrong_management_network_is_refused(section: str) -> None:
    """Bad addresses, host bits, what is outside of the subnet, unknown keys."""
    with pytest.raises(TopologyError, match="mgmt"):
        load(f"name: t\nmgmt: {section}\ntopology: {{nodes: {{n: {{kind: linux, image: i}}}}}}")


def test_addresses_are_the_fixed_ones_then_the_lowest_free() -> None:
    """Nodes without eth0 get none; what a node holds already it keeps."""
    lab = load()
    found = management.assign(lab.management, lab.nodes.values(), {})
    assert found == {
        "a": Addresses(ipv4="10.9.0.5", ipv6="fd00:9::2"),
        "b": Addresses(ipv4="10.9.0.2", ipv6="fd00:9::3"),
    }
    held = {"b": Addresses(ipv4="10.9.0.4", ipv6="fd00:9::9")}
    assert management.assign(lab.management, lab.nodes.values(), held)["b"] == held["b"]


def test_addresses_of_others_are_avoided_and_exhaustion_is_an_error() -> None:
    """A /29 with five host addresses beside the gateway."""
    lab = load()
    others = frozenset({"10.9.0.2", "10.9.0.3"})
    assert management.assign(lab.management, lab.nodes.values(), {}, others=others)["b"].ipv4 == "10.9.0.4"
    with pytest.raises(LabError, match=r"10\.9\.0\.0/29 is exhausted.*node b"):
        management.assign(lab.management, lab.nodes.values(), {}, others=others | {"10.9.0.4", "10.9.0.6"})


def test_addresses_come_from_the_range() -> None:
    """Its first address counts, too."""
    network = Management(ipv4_subnet="10.0.0.0/24", ipv4_gateway="10.0.0.1", ipv4_range="10.0.0.128/25")
    assert management.assign(network, load().nodes.values(), {})["b"].ipv4 == "10.0.0.128"


def test_a_nodes_environment_tells_it_about_itself() -> None:
    """Labels with their characters replaced, the count of links, no_proxy with the file's value in front."""
    lab = load()
    node = lab.nodes["a"]
    labels = environment.labels(lab, node, owner="o", bridge="br", git={})
    env = environment.variables(lab, node, images.profile(node), labels, 1)
    assert env["CLAB_LABEL_SITE_RACK"] == "r1"
    assert env["CLAB_LABEL_CLAB_NODE_LONGNAME"] == "clab-t-a"
    assert env["CLAB_INTFS"] == "1"
    assert "CLAB_LABEL_CLAB_MGMT_NET_BRIDGE" not in env
    assert labels["clab-mgmt-net-bridge"] == "br"
    other = lab.nodes["b"]
    proxies = environment.variables(lab, other, images.profile(other), {}, 0)["no_proxy"]
    assert proxies.startswith("example.test,localhost,127.0.0.1,::1,*.local,10.9.0.0/29,10.9.0.5,a,b,c")


def test_the_hosts_file_has_fixed_nodes_and_the_node_itself() -> None:
    """A dotted hostname is known by its first part, too."""
    lab = load()
    text = environment.hosts(lab, lab.nodes["b"], Addresses(ipv4="10.9.0.2"))
    assert text.splitlines()[-2:] == ["10.9.0.5\ta", "10.9.0.2\tbee.x bee"]


@pytest.mark.parametrize(
    ("image", "role"),
    [("calipy/node:dev", "node"), ("docker.io/calipy/plain", "plain"), ("quay.io/frrouting/frr:v8", "daemon"),
     ("alpine:3", "other"), ("localhost:5000/calipy/plain@sha256:0", "plain")],
)  # fmt: skip
def test_images_are_profiles(image: str, role: str) -> None:
    """By repository, whatever registry and tag."""
    node = msgspec.structs.replace(load().nodes["a"], image=image)
    assert images.profile(node).role == role


@pytest.mark.parametrize(("image", "policy"), [("calipy/nosuch:dev", ""), ("alpine", "never")])
def test_an_image_that_is_not_there_is_refused(image: str, policy: str) -> None:
    """An unknown one of ours, or any that must not be pulled."""
    node = msgspec.structs.replace(load().nodes["a"], image=image, pull_policy=policy)
    with pytest.raises(LabError, match=image):
        images.profile(node)


# --- differences


def changed(text: str) -> list[tuple[str, str]]:
    old = load()
    return plan(old.nodes, frozenset(), old.links, load(text)).rows()


def test_the_same_file_changes_nothing() -> None:
    """Also when only comments did."""
    assert changed(THREE + "# comment\n") == [("no changes", "-")]


def test_changes_are_told_as_containerlab_tells_them() -> None:
    """Added, deleted, recreated with the reason, links and endpoints."""
    text = THREE.replace("c: {network-mode: none}", "d: {}").replace("hostname: bee.x", "hostname: bee.y")
    text = text.replace('["a:eth1", "b:eth1"]', '["a:eth1", "d:eth1"]')
    assert changed(text) == [
        ("added nodes", "d"),
        ("deleted nodes", "c"),
        ("recreated nodes", "b (config drift: Hostname)"),
        ("added links", "a:eth1 -- d:eth1"),
        ("deleted endpoints", "b:eth1"),
    ]


def test_endpoints_of_nodes_that_go_are_not_told() -> None:
    """They go with their node; the other end is told."""
    text = THREE.replace("    b: {env: {no_proxy: example.test}, hostname: bee.x}\n", "").split("  links:")[0]
    assert changed(text) == [("deleted nodes", "b"), ("deleted endpoints", "a:eth1")]


def test_nodes_that_exited_are_started() -> None:
    """A deploy brings them back."""
    lab = load()
    assert plan(lab.nodes, frozenset({"a"}), lab.links, lab).rows() == [("started nodes", "a")]


# --- outputs


def test_merged_columns_stay_open_between_rows() -> None:
    """As go-pretty draws them."""
    drawn = outputs.table(["T", "N"], [["x", "a\nb"], ["x", "c"], ["y", "d"]], merge=1)
    lines = ["╭───┬───╮", "│ T │ N │", "├───┼───┤", "│ x │ a │", "│   │ b │", "│   ├───┤", "│   │ c │"]
    lines += ["├───┼───┤", "│ y │ d │", "╰───┴───╯", ""]
    assert drawn.split("\n") == lines


def test_topology_data_has_containerlabs_keys() -> None:
    """The keys that readers rely on, with their types."""
    lab = load()
    view = inventories.View(
        bridge="br-x",
        addresses={"a": Addresses(ipv4="10.9.0.5", ipv6="fd00:9::2")},
        labels={"a": {"x": "y"}},
        macs={"a:eth1": "aa:c1:ab:00:00:01", "b:eth1": "aa:c1:ab:00:00:02"},
    )
    data = json.loads(inventories.topology_data(lab, view))
    assert data["clab"]["config"]["mgmt"]["ipv4-gw"] == "10.9.0.1"
    node = data["nodes"]["a"]
    assert (node["index"], node["mgmt-ipv4-address"], node["mgmt-ipv4-prefix-length"]) == ("0", "10.9.0.5", 29)
    assert (data["nodes"]["c"]["mgmt-ipv6-address"], data["nodes"]["c"]["mgmt-ipv6-prefix-length"]) == ("", 0)
    assert data["links"] == [
        {
            "endpoints": {
                "a": {"node": "a", "interface": "eth1", "mac": "aa:c1:ab:00:00:01", "peer": "z"},
                "z": {"node": "b", "interface": "eth1", "mac": "aa:c1:ab:00:00:02", "peer": "a"},
            },
            "vars": {"cost": 1},
        }
    ]


def test_exec_output_that_is_json_is_embedded() -> None:
    """Numbers and objects are; words and NaN are texts."""
    results = {
        "n": [
            {"argv": ("x",), "code": 0, "stdout": text, "stderr": ""} for text in ('{"a": 1}\n', "12\n", "up\n", "NaN")
        ]
    }
    shown = json.loads(outputs.exec_json(results))
    assert [entry["stdout"] for entry in shown["n"]] == [{"a": 1}, 12, "up\n", "NaN"]


# --- names


def query(name: str, kind: int) -> bytes:
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", kind, 1)


KNOWN = {"n1": Addresses(ipv4="10.0.0.1", ipv6="fd00::1"), "four": Addresses(ipv4="10.0.0.4")}


@pytest.mark.parametrize(
    ("name", "kind", "code", "tail"),
    [
        ("n1", 1, 0, bytes([10, 0, 0, 1])),
        ("N1", 28, 0, bytes([0xFD]) + bytes(14) + b"\1"),
        ("four", 28, 0, b""),
        ("nope", 1, 3, b""),
    ],
)
def test_the_name_server_answers_what_it_knows(name: str, kind: int, code: int, tail: bytes) -> None:
    """Both families, no record of a family that a node lacks, and NXDOMAIN else."""
    answer = resolver.answer(query(name, kind), KNOWN)
    assert answer is not None
    number, flags, _questions, answers, *_ = struct.unpack_from("!HHHHHH", answer)
    assert (number, flags & 0xF, answers) == (7, code, 1 if tail else 0)
    assert answer.endswith(tail)


@pytest.mark.parametrize(
    "datagram", [b"", b"\0" * 11, b"\0\7\x80\0" + b"\0" * 8, query("n1", 1)[:-3], b"\0\7\0\0\0\1" + b"\0" * 6 + b"\xff"]
)
def test_the_name_server_survives_nonsense(datagram: bytes) -> None:
    """No answer to what is no query, a format error to a broken one."""
    answer = resolver.answer(datagram, KNOWN)
    assert answer is None or answer[3] & 0xF == 1
