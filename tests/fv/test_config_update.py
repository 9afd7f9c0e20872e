"""Changes of the configuration, and which node an object of it concerns: ``config_update`` and ``felixconfiguration``.

Felix ends and is started again for most changes. This agent takes all of them over while it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.felix import until
from tests.support.fv import Lab, Node
from tests.support.matrix import PATIENCE
from tests.support.objects import Object, make
from tests.support.scraping import metrics

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, a pod on the first."""
    with Lab(nodes=2) as lab:
        lab.external()
        lab.pod("web")
        yield lab.settled()


@pytest.fixture(autouse=True)
def _the_same_processes(lab: Lab) -> Iterator[None]:
    """Nothing of all this ends an agent."""
    before = [node.agent.status()["pid"] for node in lab.nodes]
    yield
    assert [node.agent.status()["pid"] for node in lab.nodes] == before


def configuration(name: str = "default", **spec: Any) -> Object:
    return make("FelixConfiguration", name, spec)


def labelled(node: Node, **labels: str) -> Object:
    bgp = {"ipv4Address": f"{node.ip}/24", "ipv6Address": f"{node.ip6}/64"}
    return make("Node", node.name, {"bgp": bgp}, labels=labels)


def set_size(node: Node) -> int:
    """The largest number of members of the node's sets: MaxIpsetSize."""
    [size] = set(re.findall(r"maxelem (\d+)", node.ns.run("ipset", "save")))
    return int(size)


DEFAULT = 1048576


def first_rule(chain: str) -> Callable[[Node], str]:
    return lambda node: next(rule for rule in node.rules() if rule.startswith(f"-A {chain} "))


def route(node: Node) -> str:
    return node.ns.run("ip", "route", "show", "10.65.1.2")


def test_changes_are_taken_over_by_a_running_agent(lab: Lab) -> None:
    """Rules, routes and sets follow the parameters, there and back."""
    node = lab.nodes[0]
    lab.rule(node, "FORWARD", "-d", "192.0.2.9", "-j", "ACCEPT")
    assert set_size(node) == DEFAULT
    assert "cali-FORWARD" in first_rule("FORWARD")(node)
    assert "proto 80" not in route(node)
    lab.apply(
        configuration(
            chainInsertMode="Append",
            deviceRouteProtocol=80,
            maxIpsetSize=2048,
            iptablesFilterDenyAction="Reject",
            removeExternalRoutes=False,
        )
    )
    assert "192.0.2.9" in first_rule("FORWARD")(node)
    until(lambda: "proto 80" in route(node), timeout=PATIENCE)
    assert set_size(node) == 2048
    assert any("REJECT" in rule for rule in node.rules() if rule.startswith("-A cali-tw-"))
    lab.delete(configuration())
    assert set_size(node) == DEFAULT
    assert "cali-FORWARD" in first_rule("FORWARD")(node)
    until(lambda: "proto 80" not in route(node), timeout=PATIENCE)


def test_the_more_special_object_wins(lab: Lab) -> None:
    """For one parameter: the node's own object before a selected one before ``default``; others pass through."""
    one, two = lab.nodes
    lab.apply(labelled(one, zone="a"), labelled(two, zone="b"))
    lab.apply(configuration(maxIpsetSize=1000, iptablesFilterDenyAction="Reject"))
    assert (set_size(one), set_size(two)) == (1000, 1000)
    lab.apply(configuration("zone-a", nodeSelector="zone == 'a'", maxIpsetSize=2000))
    assert (set_size(one), set_size(two)) == (2000, 1000)
    assert any("REJECT" in rule for rule in one.rules())
    lab.apply(configuration("node.n1", maxIpsetSize=3000))
    assert (set_size(one), set_size(two)) == (3000, 1000)
    lab.delete(configuration("node.n1"))
    assert (set_size(one), set_size(two)) == (2000, 1000)


def test_a_selector_follows_the_nodes_labels(lab: Lab) -> None:
    """An object concerns a node from the moment when its labels match, and no longer when they do not."""
    one, two = lab.nodes
    lab.apply(configuration("zone-a", nodeSelector="zone == 'a'", maxIpsetSize=1000))
    assert (set_size(one), set_size(two)) == (DEFAULT, DEFAULT)
    lab.apply(labelled(two, zone="a"))
    assert (set_size(one), set_size(two)) == (DEFAULT, 1000)
    lab.apply(labelled(one, zone="a"), labelled(two, zone="b"))
    assert (set_size(one), set_size(two)) == (1000, DEFAULT)
    lab.apply(configuration("zone-a", nodeSelector="zone == 'b'", maxIpsetSize=1000))
    assert (set_size(one), set_size(two)) == (DEFAULT, 1000)


def test_of_two_selected_objects_the_oldest_counts(lab: Lab) -> None:
    """A newer object that selects the same node takes nothing from the first."""
    one = lab.nodes[0]
    lab.apply(labelled(one, zone="a"))
    lab.apply(configuration("z-first", nodeSelector="zone == 'a'", maxIpsetSize=1000))
    created = lab.datastore.client("get", "FelixConfiguration", "z-first").metadata.creation_timestamp
    newer = configuration("a-second", nodeSelector="zone == 'a'", maxIpsetSize=2000)
    until(lambda: now(lab) > created, timeout=PATIENCE)
    lab.apply(newer)
    assert set_size(one) == 1000
    lab.delete(configuration("z-first"))
    assert set_size(one) == 2000


def now(lab: Lab) -> str:
    """The second that an object made now would bear."""
    return lab.nodes[0].ns.run("date", "-u", "+%Y-%m-%dT%H:%M:%SZ").strip()


def test_the_log_is_as_loud_as_asked_for(lab: Lab) -> None:
    """LogSeverityScreen is followed, there and back."""
    node = lab.nodes[0]

    def says(port: int, level: str) -> bool:
        spec = {"prometheusMetricsEnabled": True, "prometheusMetricsPort": port, "logSeverityScreen": level}
        lab.apply(configuration(**spec))
        until(lambda: metrics(node, port=port), timeout=PATIENCE)
        return f'"port": {port}' in node.agent.log.read_text()

    assert says(9201, "Info")
    assert not says(9202, "Error")
    assert says(9203, "Info")


def test_the_environment_comes_first() -> None:
    """What the node's own environment says, no object changes."""
    with Lab(FELIX_MAXIPSETSIZE="2000") as lab:
        lab.pod("web")
        lab.settled()
        assert set_size(lab.nodes[0]) == 2000
        lab.apply(configuration(maxIpsetSize=1000, chainInsertMode="Append"))
        assert set_size(lab.nodes[0]) == 2000


def test_a_bad_value_keeps_the_default_and_is_told(lab: Lab) -> None:
    """What Calico's API would not have let pass, but somebody stored, harms nothing but itself."""
    [node, _], [web], [world] = lab.nodes, lab.pods, lab.externals
    bad = configuration(maxIpsetSize=1000)
    bad[1].metadata.annotations["config.projectcalico.org/IptablesMarkMask"] = "0x3"
    bad[1].metadata.annotations["config.projectcalico.org/RouteRefreshInterval"] = "often"
    lab.apply(bad)
    assert set_size(node) == 1000
    log = node.agent.log.read_text()
    for name, value in (("IptablesMarkMask", "0x3"), ("RouteRefreshInterval", "often")):
        assert f'"parameter": "{name}", "value": "{value}"' in log
    lab.expect({(world, web): "tcp/80"})
