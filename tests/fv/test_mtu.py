"""How large the pods' packets may be. Theme ``mtu`` of Calico's felix/fv."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.felix import until
from tests.support.netns import Namespace
from tests.support.objects import Object, make
from tests.support.tunnels import Cluster, TunnelNode, pool, vxlan

pytestmark = [pytest.mark.kernel]


@pytest.fixture
def cluster(make_netns: Callable[..., Namespace]) -> Iterator[Cluster]:
    """One node, whose Felix has not been started."""
    made = Cluster(make_netns, ("n1",))
    try:
        yield made
    finally:
        made.close()


def configured(**spec: Any) -> Object:
    return make("FelixConfiguration", "default", spec)


def mtu_of(node: TunnelNode, name: str) -> int:
    link = node.ns.links.get_link(name)
    assert link is not None
    return link.mtu


def test_the_file_follows_the_encapsulations_in_use(cluster: Cluster, tmp_path: Path) -> None:
    """The smallest of the enabled ones; configured values go first; the devices have theirs."""
    node, file = cluster["n1"], tmp_path / "lib" / "mtu"
    node.start(file)
    plain, vxlan4, vxlan6 = pool(), *vxlan("Always")
    for objects, told in (
        ((plain,), 1500),
        ((vxlan4,), 1450),
        ((vxlan4, vxlan6), 1430),
        ((pool(ipipMode="Always"),), 1480),
        ((pool(ipipMode="CrossSubnet"), configured(ipipMTU=1400)), 1400),
        ((vxlan4, vxlan6, configured(vxlanMTU=1300, vxlanMTUV6=1310)), 1300),
        ((vxlan4, vxlan6, configured(vxlanMTU=1440)), 1430),
        ((plain, configured(vxlanMTU=1200)), 1500),
    ):
        cluster.become(cluster.objects(*objects))
        assert file.read_text() == str(told)
    cluster.become(cluster.objects(vxlan4, vxlan6))
    assert (mtu_of(node, "vxlan.calico"), mtu_of(node, "vxlan-v6.calico")) == (1450, 1430)
    assert [found.name for found in file.parent.iterdir()] == ["mtu"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_the_smallest_physical_link_that_is_up_counts(cluster: Cluster, tmp_path: Path) -> None:
    """By name, also when it changes while the agent runs; links that are down, and others' names, do not."""
    node, file = cluster["n1"], tmp_path / "mtu"
    for name, mtu in (("eth1", 1450), ("eth2", 1400), ("br0", 1370)):
        cluster.connect(node, name, 1)
        node.ns.links.set_mtu(name, mtu)
    node.ns.links.set_down("eth2")
    node.start(file)
    cluster.become(cluster.objects(*vxlan("Always")))
    assert file.read_text() == "1380"
    assert mtu_of(node, "vxlan.calico") == 1400
    node.ns.links.set_up("eth2")
    until(lambda: file.read_text() == "1330" and mtu_of(node, "vxlan.calico") == 1350)
    node.ns.links.delete_link("eth2")
    node.ns.links.set_mtu("eth1", 1480)
    until(lambda: file.read_text() == "1410" and mtu_of(node, "vxlan.calico") == 1430)
    cluster.become([*cluster.objects(*vxlan("Always")), configured(mtuIfacePattern="^br")])
    assert file.read_text() == "1300"
    cluster.become([*cluster.objects(pool()), configured(mtuIfacePattern="^nothing")])
    assert file.read_text() == "1460"


def test_ipv6_needs_its_least_mtu(cluster: Cluster) -> None:
    """A VXLAN device for IPv6 that could not carry IPv6 is not made, and the status tells why; IPv4 has its device."""
    node = cluster["n1"]
    node.ns.links.set_mtu("eth0", 1300)
    felix = node.start()
    cluster.become(cluster.objects(*vxlan("Always")))
    assert mtu_of(node, "vxlan.calico") == 1250
    assert node.ns.links.get_link("vxlan-v6.calico") is None
    assert any("1230" in warning and "1280" in warning for warning in felix.status().warnings)


def test_a_file_that_must_be_there(cluster: Cluster, tmp_path: Path) -> None:
    """RequireMTUFile: not ready while it cannot be written; otherwise a warning."""
    node, file = cluster["n1"], tmp_path / "taken" / "mtu"
    file.parent.write_text("a file where the directory should be")
    felix = node.start(file)
    cluster.become(cluster.objects(pool()))
    assert any("MTU" in warning for warning in felix.status().warnings)
    felix.events(configured(requireMTUFile=True), revision=50)
    until(lambda: any("MTU" in reason for reason in felix.status().reasons))
    file.parent.unlink()
    until(lambda: felix.status().ready and felix.status().applied_revision >= 50)
    assert file.read_text() == "1500"
