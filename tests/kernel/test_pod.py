"""A pod's network, made and removed on a real kernel and a real etcd."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from calipy.cni import veth
from calipy.cni.request import PodRequest
from calipy.cni.veth import InterfaceExistsError
from calipy.datastore.resources import WorkloadEndpointPort
from calipy.errors import InvalidInputError, KernelError, UnavailableError
from calipy.felix.messages import EndpointID
from calipy.ipam.errors import AddressTakenError, IPAMError
from calipy.kernel import sysctl
from calipy.kernel.links import VethEnd
from calipy.net import HOST_MAC, NextHop, Route
from tests.support.podnode import NODE, on_node

_TENTATIVE = 0x40

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


def test_a_pod_gets_all_that_calico_gives_it(make_netns):
    """Address /32, gateway 169.254.1.1, host MAC, sysctls, host route, endpoint, profiles, IPAM attributes."""

    async def scenario(node):
        pod = make_netns("pod")
        request = node.request(
            pod,
            namespace="shop",
            labels={"app": "web", "projectcalico.org/namespace": "liar"},
            ports=(WorkloadEndpointPort(name="http", protocol="TCP", port=80),),
            mtu=1440,
        )
        result = await node.pods.add(request)
        (address,) = (str(entry.address) for entry in result.addresses)
        assert ip_address(address) in ip_network("10.65.0.0/26")
        assert result.addresses[0].block == "10.65.0.0/26"
        assert (result.interface, result.mtu, result.programmed) == (
            "calic9fcb3c8e2d"[:4] + result.interface[4:],
            1440,
            True,
        )

        host = json.loads(await asyncio.to_thread(node.host.run, "ip", "-j", "-d", "link", "show", result.interface))[0]
        assert (host["address"], host["mtu"], host["operstate"]) == (HOST_MAC, 1440, "UP")
        assert [str(a.address) for a in pod.links.list_addresses(interface="eth0", family=4)] == [f"{address}/32"]
        routes = json.loads(await asyncio.to_thread(pod.run, "ip", "-j", "route"))
        assert [(r["dst"], r.get("gateway"), r.get("scope"), r["dev"]) for r in routes] == [
            ("default", "169.254.1.1", None, "eth0"),
            ("169.254.1.1", None, "link", "eth0"),
        ]
        assert node.host.routes.dump(interface=result.interface, family=4) == [
            Route(
                ip_network(f"{address}/32"),
                next_hops=(NextHop(None, result.interface),),
                protocol=3,
                scope="link",
            )
        ]
        values = {
            key: sysctl.read(f"net/{key.replace('IF', result.interface)}")
            for key in (
                "ipv4/conf/IF/proxy_arp",
                "ipv4/conf/IF/forwarding",
                "ipv4/conf/IF/route_localnet",
                "ipv4/neigh/IF/proxy_delay",
                "ipv6/conf/IF/accept_ra",
                "ipv6/conf/IF/proxy_ndp",
            )
        }
        assert list(values.values()) == ["1", "1", "1", "0", "0", "0"]

        (endpoint,) = (await node.endpoints()).values()
        assert (endpoint.name, endpoint.namespace) == ("node--1-k8s-web-eth0", "shop")
        assert endpoint.metadata.labels == {
            "app": "web",
            "projectcalico.org/namespace": "shop",
            "projectcalico.org/orchestrator": "k8s",
            "projectcalico.org/serviceaccount": "default",
        }
        spec = endpoint.spec
        assert (spec.ip_networks, spec.profiles) == ((f"{address}/32",), ("kns.shop", "ksa.shop.default"))
        assert (spec.container_id, spec.pod, spec.mac) == (request.container_id, "web", pod.links.get_link("eth0").mac)
        assert [(port.name, port.port) for port in spec.ports] == [("http", 80)]
        profile = await node.client.get("Profile", "kns.shop")
        assert profile.spec.labels_to_apply["pcns.projectcalico.org/name"] == "shop"
        assert await node.client.get("Profile", "ksa.shop.default") is not None
        attributes = (await node.allocator.attributes(address)).secondary
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC", attributes["timestamp"])
        assert (attributes["node"], attributes["pod"], attributes["namespace"]) == (NODE, "web", "shop")
        assert await node.handles() == {f"k8s-pod-network.{request.container_id}"}
        assert node.felix.waited == [(EndpointID("k8s", "shop/web", "eth0"), (f"{address}/32",))]
        assert {"datastore", "ipam", "veth", "addresses", "endpoint", "policy", "total"} <= set(result.milliseconds)

    on_node(make_netns, scenario)


def test_pods_reach_each_other_without_a_default_route_on_the_node(make_netns):
    """Both families work from the first packet: the pod knows its gateway's MAC and its addresses need no detection."""

    async def scenario(node):
        one, two = make_netns("one"), make_netns("two")
        sysctl.write("net.ipv6.conf.all.forwarding", 1)  # part of the node's set-up, as ip_forward is
        await node.pods.add(node.request(one, "one", ipv6=True))
        result = await node.pods.add(node.request(two, "two", ipv6=True))
        host_end = node.host.links.list_addresses(interface=result.interface, family=6)
        assert [(str(a.address), a.flags & _TENTATIVE) for a in host_end] == [("fe80::ecee:eeff:feee:eeee/64", 0)]
        assert sysctl.read(f"net/ipv6/conf/{result.interface}/accept_dad") == "0"
        assert not [r for r in node.host.routes.dump() if r.dst.prefixlen == 0]
        for entry in result.addresses:
            said = await asyncio.to_thread(one.run, "ping", "-c1", "-W2", str(entry.address))
            assert "1 received" in said
        six = json.loads(await asyncio.to_thread(two.run, "ip", "-6", "-j", "route"))
        assert "fe80::ecee:eeff:feee:eeee" in {route.get("gateway") for route in six if route["dst"] == "default"}

    on_node(make_netns, scenario)


def test_removal_leaves_nothing_and_may_be_repeated(make_netns):
    """Interface, route, endpoint, address and handle go; a second and an unfounded removal succeed."""

    async def scenario(node):
        pod = make_netns("pod")
        before = await node.keys("/calico/resources/")
        request = node.request(pod)
        await node.pods.add(request)
        for _ in range(2):
            await node.pods.delete(request)
            assert node.interfaces() == []
            assert pod.links.get_link("eth0") is None
            assert await node.endpoints() == {}
            assert await node.allocated() == set()
            assert await node.handles() == set()
        assert {key.rsplit("/", 1)[1] for key in await node.keys("/calico/resources/") - before} == {
            "kns.default",
            "ksa.default.default",
        }
        await node.pods.delete(node.request(pod, "never-added"))

    on_node(make_netns, scenario)


def test_removal_needs_no_namespace(make_netns):
    """The namespace is gone, or the path empty: everything else is cleaned all the same."""

    async def scenario(node):
        pod = make_netns("pod")
        request = node.request(pod)
        await node.pods.add(request)
        await node.pods.delete(PodRequest(request.container_id, "/run/netns/gone", name="web"))
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())

    on_node(make_netns, scenario)


def test_a_newer_container_is_spared_by_the_removal_of_the_older(make_netns):
    """ADD X, ADD Y, DEL X: Y keeps endpoint, interface and address; X's address is free; DEL Y cleans the rest."""

    async def scenario(node):
        first, second = make_netns("first"), make_netns("second")
        old, new = node.request(first), node.request(second)
        was = await node.pods.add(old)
        now = await node.pods.add(new)
        assert was.addresses != now.addresses
        assert first.links.get_link("eth0") is None
        (endpoint,) = (await node.endpoints()).values()
        assert endpoint.spec.container_id == new.container_id
        assert endpoint.spec.ip_networks == (f"{now.addresses[0].address}/32",)
        assert len(await node.allocated()) == 2
        await node.pods.delete(old)
        assert await node.endpoints() == {endpoint.name: endpoint}
        assert await node.allocated() == {str(now.addresses[0].address)}
        assert second.links.get_link("eth0").running
        await node.pods.delete(new)
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())

    on_node(make_netns, scenario)


def test_a_second_interface_is_a_second_endpoint(make_netns):
    """Another name inside the same pod: own endpoint, own host end, own address; each is removed alone."""

    async def scenario(node):
        pod = make_netns("pod")
        one = node.request(pod)
        await node.pods.add(one)
        two = node.request(pod, ifname="net1")
        await node.pods.add(two)
        assert set(await node.endpoints()) == {"node--1-k8s-web-eth0", "node--1-k8s-web-net1"}
        assert len(node.interfaces()) == 2
        await node.pods.delete(two)
        assert set(await node.endpoints()) == {"node--1-k8s-web-eth0"}
        assert pod.links.get_link("eth0").running

    on_node(make_netns, scenario)


def test_an_exhausted_pool_changes_nothing_for_the_pod_that_runs(make_netns):
    """The second ADD of the same pod finds no address: error, and the first keeps its interface and endpoint."""

    async def scenario(node):
        first, second = make_netns("first"), make_netns("second")
        await node.pods.add(node.request(first))
        before = await node.keys(), await node.endpoints(), await node.allocated()
        with pytest.raises(IPAMError, match="IPv4"):
            await node.pods.add(node.request(second))
        assert (await node.keys(), await node.endpoints(), await node.allocated()) == before
        assert first.links.get_link("eth0").running
        assert second.links.get_link("eth0") is None

    on_node(make_netns, scenario, pool4="10.65.0.7/32")


def test_a_family_that_is_short_gives_the_other_back(make_netns):
    """Two families are all or nothing."""

    async def scenario(node):
        await node.pods.add(node.request(make_netns("first"), "first"))
        before = await node.allocated()
        pod = make_netns("second")
        with pytest.raises(IPAMError):
            await node.pods.add(node.request(pod, "second", ipv6=True))
        assert await node.allocated() == before
        assert len(node.interfaces()) == 1
        assert pod.links.get_link("eth0") is None

    on_node(make_netns, scenario, pool4="10.65.0.7/32")


def test_an_interface_that_exists_is_an_error_and_nothing_changes(make_netns):
    """The pod's own eth0 is not touched, no address is kept, no endpoint written."""

    async def scenario(node):
        pod = make_netns("pod")
        pod.links.create_veth(VethEnd("eth0"), VethEnd("other0"))
        with pytest.raises(InterfaceExistsError, match="eth0"):
            await node.pods.add(node.request(pod))
        assert pod.links.get_link("other0") is not None
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())
        assert await node.handles() == set()

    on_node(make_netns, scenario)


@pytest.mark.parametrize("step", ["profiles", "veth", "addresses", "endpoint", "endpoint unheard", "policy"])
def test_a_failure_at_any_step_undoes_all_before(make_netns, monkeypatch, step):
    """Whatever fails, no interface, address, handle or endpoint is left, and the next attempt succeeds."""

    async def scenario(node):
        pod = make_netns("pod")
        boom = KernelError("boom")
        create = node.client.create

        async def failing_create(resource):
            if step == "endpoint unheard" and resource.kind == "WorkloadEndpoint":
                await create(resource)
                raise UnavailableError("no answer")
            if (resource.kind, step) in {("Profile", "profiles"), ("WorkloadEndpoint", "endpoint")}:
                raise UnavailableError("gone")
            return await create(resource)

        def fail(*_args):
            raise boom

        with monkeypatch.context() as patch:
            if step in {"profiles", "endpoint", "endpoint unheard"}:
                patch.setattr(node.client, "create", failing_create)
            elif step == "veth":
                patch.setattr(veth, "_lead_to_gateway", fail)
            elif step == "addresses":
                patch.setattr(veth, "give_addresses", fail)
            else:
                node.felix.error = boom
            with pytest.raises((KernelError, UnavailableError)):
                await node.pods.add(node.request(pod))
        node.felix.error = None
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())
        assert await node.handles() == set()
        assert pod.links.get_link("eth0") is None
        assert (await node.pods.add(node.request(pod))).programmed

    on_node(make_netns, scenario)


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02, "policy"])
def test_a_cancelled_request_undoes_all(make_netns, moment):
    """Cancelled at any time, also in the middle of a write or of the kernel's work: nothing is left."""

    async def scenario(node):
        pod = make_netns("pod")
        node.felix.blocks = True
        task = asyncio.create_task(node.pods.add(node.request(pod)))
        if moment == "policy":
            await node.felix.waiting.wait()
        else:
            await asyncio.sleep(moment)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())
        assert await node.handles() == set()

    on_node(make_netns, scenario)


def test_policy_that_is_late_is_no_failure(make_netns):
    """The pod is there, and the result says that policy is not in force yet."""

    async def scenario(node):
        node.felix.answer = False
        result = await node.pods.add(node.request(make_netns("pod")))
        assert not result.programmed
        assert len(await node.endpoints()) == 1

    on_node(make_netns, scenario)


def test_a_given_address_is_taken_once(make_netns):
    """The address asked for is assigned; a second pod that asks for it is refused and the first keeps it."""

    async def scenario(node):
        result = await node.pods.add(node.request(make_netns("one"), "one", ips=("10.65.0.33",)))
        assert [str(entry.address) for entry in result.addresses] == ["10.65.0.33"]
        with pytest.raises(AddressTakenError):
            await node.pods.add(node.request(make_netns("two"), "two", ips=("10.65.0.33",)))
        assert await node.allocated() == {"10.65.0.33"}
        assert set(await node.endpoints()) == {"node--1-k8s-one-eth0"}

    on_node(make_netns, scenario)


def test_a_route_elsewhere_is_a_conflict_and_one_through_us_is_not(make_netns):
    """A host route for the address through another interface is refused; a stale pair of our name makes way."""

    async def scenario(node):
        node.host.links.create_veth(VethEnd("other0"), VethEnd("other1"))
        node.host.address("other0", "192.0.2.1/24")
        node.host.links.set_up("other1")
        taken = Route(ip_network("10.65.0.5/32"), next_hops=(NextHop(None, "other0"),), scope="link")
        assert node.host.routes.apply(add=[taken]) == []
        pod = make_netns("pod")
        with pytest.raises(KernelError, match=r"10\.65\.0\.5") as caught:
            await node.pods.add(node.request(pod, ips=("10.65.0.5",)))
        assert caught.value.code == errno.EEXIST
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())
        assert taken in node.host.routes.dump()

        stale = node.request(pod, ips=("10.65.0.6",))
        node.host.links.create_veth(VethEnd(stale.interface), VethEnd("stale1"))
        await node.pods.add(stale)
        assert node.host.links.get_link("stale1") is None
        assert pod.links.get_link("eth0").running

    on_node(make_netns, scenario)


def test_a_container_without_a_name_is_made_as_calico_makes_it(make_netns):
    """Orchestrator cni: names from the container id, the network's profile, and a repeated ADD repeats the result."""

    async def scenario(node):
        pod = make_netns("pod")
        request = node.request(pod, "", orchestrator="cni", container_id="c0ffee01c0ffee01", network="pod-net")
        result = await node.pods.add(request)
        assert result.interface == "calic0ffee01c0f"
        (endpoint,) = (await node.endpoints()).values()
        assert endpoint.name == "node--1-cni-c0ffee01c0ffee01-eth0"
        assert endpoint.metadata.labels == {
            "projectcalico.org/namespace": "default",
            "projectcalico.org/orchestrator": "cni",
        }
        spec = endpoint.spec
        assert (spec.orchestrator, spec.pod, spec.profiles, spec.service_account_name) == ("cni", "", ("pod-net",), "")
        profile = (await node.client.get("Profile", "pod-net")).spec
        assert profile.labels_to_apply == {"pod-net": ""}
        assert profile.ingress[0].source.selector == "has(pod-net)"
        assert set((await node.allocator.attributes(str(result.addresses[0].address))).secondary) == {
            "node",
            "timestamp",
        }
        again = await node.pods.add(request)
        assert [entry.address for entry in again.addresses] == [entry.address for entry in result.addresses]
        assert len(await node.allocated()) == 1
        await node.pods.delete(request)
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())

    on_node(make_netns, scenario)


def test_a_locked_datastore_refuses_both_and_touches_nothing(make_netns):
    """While datastoreReady is false, ADD and DEL fail so that the runtime tries again."""

    async def scenario(node):
        pod = make_netns("pod")
        request = node.request(pod)
        await node.pods.add(request)
        information = await node.client.get("ClusterInformation", "default")
        locked = msgspec.structs.replace(information.spec, datastore_ready=False)
        await node.client.update(msgspec.structs.replace(information, spec=locked))
        with pytest.raises(UnavailableError, match="not ready"):
            await node.pods.delete(request)
        with pytest.raises(UnavailableError, match="not ready"):
            await node.pods.add(node.request(make_netns("other"), "other"))
        assert len(node.interfaces()) == 1
        assert len(await node.endpoints()) == len(await node.allocated()) == 1

    on_node(make_netns, scenario)


def test_many_pods_at_once_get_distinct_addresses(make_netns):
    """Twelve requests side by side: twelve addresses, interfaces and endpoints; then all are removed side by side."""

    async def scenario(node):
        requests = [node.request(make_netns(f"p{n}"), f"pod-{n}") for n in range(12)]
        results = await asyncio.gather(*(node.pods.add(request) for request in requests))
        assert len({result.addresses[0].address for result in results}) == 12
        assert len(node.interfaces()) == len(await node.endpoints()) == 12
        await asyncio.gather(*(node.pods.delete(request) for request in requests))
        assert (node.interfaces(), await node.endpoints(), await node.allocated()) == ([], {}, set())

    on_node(make_netns, scenario)


def test_the_nodes_own_namespace_is_no_pod(make_netns):
    """Its path is refused, and so is one that is no namespace."""

    async def scenario(node):
        with pytest.raises(InvalidInputError, match="own namespace"):
            await node.pods.add(node.request(node.host))
        with pytest.raises(KernelError) as caught:
            await node.pods.add(PodRequest("c1", "/run/netns/missing", name="web"))
        assert caught.value.code == errno.ENOENT
        assert await node.allocated() == set()

    on_node(make_netns, scenario)
