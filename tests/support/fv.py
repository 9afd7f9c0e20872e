"""Clusters of real agents for tests: nodes, pods and machines outside as namespaces on one segment, a real etcd.

    hub: etcd at 172.20.0.1 ── segment ─┬─ n1 172.20.0.11 ── cali… ── pods 10.65.1.…
                                        ├─ n2 172.20.0.12 ── cali… ── pods 10.65.2.…
                                        └─ world 172.20.0.101

The same in IPv6: fd20::…, fd65:1::…. Machines reach pods through their nodes; nothing is translated. Agents only
enforce policy, unless their variables say more. A lab serves the tests of a module; ``reset`` takes back after each
test what it changed by way of the lab.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from msgspec.structs import replace

from calipy.cni import veth
from calipy.conformance.netpol_agents import Agent
from calipy.datastore import codec, defaults
from calipy.datastore.keys import ResourceKey, path
from calipy.errors import AgentUnavailableError, NotFoundError
from calipy.kernel import process, sysctl
from calipy.kernel.links import Links, VethEnd
from calipy.kernel.netlink import NetlinkSocket
from tests.support import objects, owned
from tests.support.datastore import Datastore
from tests.support.etcd import EtcdServer
from tests.support.matrix import PATIENCE, Checker, Matrix, Site, cells
from tests.support.netns import Namespace
from tests.support.objects import Object
from tests.support.stream import Stream

HUB = "172.20.0.1"
POD_NAMESPACE = "fv"
_MARKER = "/calico/resources/v3/projectcalico.org/ipreservations/fv-marker"
_MTU = 1500


@dataclass(eq=False, repr=False)
class Node(Site):
    """A node: machine and agent. ``name`` is its name in the datastore, too."""

    backend: str
    agent: Agent = field(init=False)
    stopped: bool = False

    def stop(self) -> None:
        """Kill the agent; nobody waits for it until ``start``."""
        self.agent.stop()
        self.stopped = True

    def start(self) -> None:
        """Start the agent again."""
        self.agent.start()
        self.stopped = False

    def rules(self, table: str = "filter", family: int = 4) -> list[str]:
        """Rules of one table as ``iptables-save`` prints them, without counters."""
        saved = self.ns.run(f"{_program(family)}-{self.backend}-save", "-t", table)
        return [line for line in saved.splitlines() if line.startswith("-A")]

    def felix(self) -> Mapping[str, Any]:
        """What the agent says of Felix; {} if it does not answer."""
        try:
            found: Mapping[str, Any] = self.agent.status()["felix"]
        except AgentUnavailableError:
            return {}
        return found

    def warnings(self) -> list[str]:
        """What the agent itself warns of, apart from Felix; [] if it does not answer."""
        try:
            return list(self.agent.status()["warnings"])
        except AgentUnavailableError:
            return []


@dataclass(eq=False, repr=False)
class Pod(Site):
    """A pod and its endpoint's object."""

    node: Node
    interface: str
    template: Mapping[str, Any]

    def object(self, **changes: Any) -> Object:
        """Its workload endpoint; ``changes`` are labels and arguments of ``objects.pod``."""
        addresses = tuple(map(str, self.addresses.values()))
        settings = {"node": self.node.name, "namespace": POD_NAMESPACE, "interface": self.interface}
        return objects.pod(self.name, *addresses, **{**settings, **self.template, **changes})


class Lab:
    """One cluster; everything ends with it.

    Attributes:
        backend: of iptables on all nodes.
        nodes, etcd, checker: its parts.
    """

    def __init__(self, *, nodes: int = 1, backend: str = "nft", **variables: str) -> None:
        """Start it; the agents may not be ready yet.

        Args:
            nodes: how many: ``n1``, ``n2``, ….
            backend: of iptables.
            variables: of the agents' environment, e.g. ``FELIX_CHAININSERTMODE="append"``.
        """
        self._stack = contextlib.ExitStack()
        self._undo = contextlib.ExitStack()
        self._before: dict[ResourceKey, Any] | None = None
        self._machines: list[Site] = []
        self._variables = variables
        self.backend = backend
        self.nodes: list[Node] = []
        with contextlib.ExitStack() as building:
            building.callback(self.close)
            self._directory = owned.directory("fv")
            self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._hub = self._namespace("hub")
            _make_segment(self._hub)
            self.etcd = EtcdServer(inside=self._hub, address=HUB)
            self._stack.enter_context(self.etcd)
            self.datastore = Datastore(self.etcd.url, self._hub)
            self._stack.callback(self.datastore.close)
            self.checker = Checker(self._hub)
            self._stack.callback(self.checker.close)
            self.datastore.client("ensure_initialised")
            for _ in range(nodes):
                self.node()
            self.apply(_POOL, objects.namespace_profile(POD_NAMESPACE), wait=False)
            building.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        with self._stack, self._undo:
            pass

    @property
    def pods(self) -> list[Pod]:
        """All pods, in the order in which they were made."""
        return [site for site in self._machines if isinstance(site, Pod)]

    @property
    def externals(self) -> list[Site]:
        """All machines outside, likewise."""
        return [site for site in self._machines if type(site) is Site]

    # Parts

    def node(self, **variables: str) -> Node:
        """One more node, its agent started."""
        number = len(self.nodes) + 1
        node = Node(f"n{number}", *self._machine(f"n{number}", 10 + number), self.backend)
        for other in (*self.nodes, *self.externals):
            _lead(other, node)
        for other in self.nodes:
            _lead(node, other)
        self._machines.append(node)
        bgp = {"ipv4Address": f"{node.ip}/24", "ipv6Address": f"{node.ip6}/64"}
        self.apply(objects.make("Node", node.name, {"bgp": bgp}), wait=False)
        settings = {**self._variables, **variables}
        node.agent = Agent(node.name, node.ns.fd, self._directory, self.etcd.url, self.backend, **settings)
        self._stack.callback(node.agent.stop)
        self.nodes.append(node)
        return node

    def pod(self, name: str, node: Node | None = None, *, endpoint: bool = True, **settings: Any) -> Pod:
        """One more pod, on the first node unless another is given; its endpoint written, unless told not to.

        Args:
            name: its name.
            node: where.
            endpoint: write its workload endpoint.
            settings: its labels, and arguments of ``objects.pod``.
        """
        node = node or self.nodes[0]
        number = sum(pod.node is node for pod in self.pods) + 2
        place = node.name[1:]
        addresses = {4: f"10.65.{place}.{number}", 6: f"fd65:{place}::{number}"}
        interface = f"cali{int(place):03x}{number:08x}"
        ns = self._namespace(name)
        wire = veth.Veth(interface, "eth0", ns.fd, _MTU, ipv4=True, ipv6=True)
        ns.call(_furnish)
        node.ns.call(veth.prepare, wire)
        found = {version: ipaddress.ip_address(text) for version, text in addresses.items()}
        ns.links.add_addresses("eth0", [ipaddress.ip_interface(one) for one in found.values()], dad=False)
        pod = Pod(name, ns, found, node, interface, settings)
        self._machines.append(pod)
        if endpoint:
            self.apply(pod.object(), wait=False)
        return pod

    def external(self, name: str = "world") -> Site:
        """One more machine on the segment that is no node."""
        number = 101 + len(self.externals)
        site = Site(name, *self._machine(name, number))
        self._machines.append(site)
        for node in self.nodes:
            _lead(site, node)
        return site

    # Changes

    def apply(self, *wanted: Object, wait: bool = True) -> None:
        """Write objects, in this order; then wait until every agent has them in its kernel, unless told not to."""
        for key, resource in wanted:
            self._remember(key)
            self.datastore.client("apply", replace(resource, revision=0))
        if wait:
            self.sync()

    def delete(self, *unwanted: Object | ResourceKey, wait: bool = True) -> None:
        """Delete objects, in this order; then as ``apply``."""
        for item in unwanted:
            key = item if isinstance(item, ResourceKey) else item[0]
            self._remember(key)
            self.datastore.client("delete", key.kind, key.name, key.namespace)
        if wait:
            self.sync()

    def store(self, *wanted: Object) -> None:
        """Write objects as they are, also such as no client of the datastore accepts; then as ``apply``."""
        for key, resource in wanted:
            self._remember(key)
            self.datastore.store("put", path(key), codec.encode(defaults.fill(resource)))
        self.sync()

    def host_endpoint(self, node: Node | None = None, *, interface: str = "*", **spec: Any) -> Object:
        """A host endpoint of a node: of all interfaces, or of one (``eth0`` is the uplink); ``spec`` by JSON names."""
        node = node or self.nodes[0]
        name = f"{node.name}-{'all' if interface == '*' else interface}"
        labels = {"host-endpoint": "true", "node": node.name}
        spec = {"node": node.name, "interfaceName": interface, **spec}
        return objects.make("HostEndpoint", name, spec, labels=labels)

    def sync(self, *, timeout: float = PATIENCE) -> None:
        """Wait until every agent that is not stopped has all that is in the datastore now in its kernel."""
        revision = self.datastore.store("put", _MARKER, b'{"kind":"IPReservation","metadata":{"name":"fv-marker"}}')
        end = time.monotonic() + timeout
        for node in self.nodes:
            while not node.stopped and (felix := node.felix()).get("applied_revision", 0) < revision:
                late = time.monotonic() > end or not node.agent.running
                assert not late, f"{node} has not followed: {felix}\n{node.agent.log.read_text()[-3000:]}"
                time.sleep(0.01)

    def defer(self, undo: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Call it when the test is over."""
        self._undo.callback(undo, *arguments, **named)

    def iptables(self, site: Site, *arguments: str, family: int = 4) -> str:
        """Run ``iptables`` of the lab's backend; its output."""
        return site.ns.run(f"{_program(family)}-{self.backend}", "-w", *arguments)

    def rule(self, site: Site, chain: str, *rule: str, table: str = "filter", family: int = 4) -> None:
        """Append somebody else's rule to a chain, for the duration of the test. In front the agents keep their own."""
        self.iptables(site, "-t", table, "-A", chain, *rule, family=family)
        self.defer(self.iptables, site, "-t", table, "-D", chain, *rule, family=family)

    def translate(
        self, node: Node, address: str, port: int, to: Site, to_port: int, *, protocol: str = "tcp", local: bool = False
    ) -> None:
        """DNAT on a node as kube-proxy does for a Service: of what arrives, with ``local`` of its own traffic, too."""
        version = ipaddress.ip_address(address).version
        target = f"[{to.ip6}]:{to_port}" if version == 6 else f"{to.ip}:{to_port}"
        rule = ("-d", address, "-p", protocol, "--dport", str(port), "-j", "DNAT", "--to-destination", target)
        for chain in ("PREROUTING", "OUTPUT") if local else ("PREROUTING",):
            self.rule(node, chain, *rule, table="nat", family=version)

    def reset(self) -> None:
        """Take back what was applied, deleted and deferred since the last reset or ``settled``; stop listening."""
        self._undo.close()
        self.checker.close()
        changed, self._before = self._before or {}, {}
        for key, resource in reversed(changed.items()):
            if resource is not None:
                self.datastore.client("apply", replace(resource, revision=0))
            else:
                with contextlib.suppress(NotFoundError):
                    self.datastore.client("delete", key.kind, key.name, key.namespace)
        if changed:
            self.sync()

    def settled(self) -> Self:
        """Wait until the agents have everything, and take that for what ``reset`` returns to."""
        self.sync()
        self._before = {}
        return self

    def _remember(self, key: ResourceKey) -> None:
        if self._before is not None and key not in self._before:
            self._before[key] = self.datastore.client("get", key.kind, key.name, key.namespace)

    # Checks

    def listen(self, site: Site, text: str) -> None:
        """Answer at a site on ports (``tcp/80,81 udp46/53``): for what is sent to it by another address."""
        self.checker.listen(site, text)

    def expect(self, matrix: Matrix, *, within: float = PATIENCE) -> None:
        """Wait until the matrix holds, and see it hold; AssertionError with the cells that do not. See ``matrix``."""
        wanted = cells(matrix)
        for protocol, port in {(cell.probe.protocol, cell.probe.source_port) for cell in wanted}:
            if port is not None:
                self.forget_connections("-p", protocol, "--orig-port-src", str(port))
        self.checker.expect(wanted, within=within)

    @contextlib.contextmanager
    def stream(self, source: Site, destination: Site, port: int, *, family: int = 4) -> Iterator[Stream]:
        """A UDP conversation, to be counted."""
        stream = Stream(source, destination, port, family)
        try:
            yield stream
        finally:
            stream.close()

    def wrong(self, matrix: Matrix) -> list[str]:
        """The cells that do not hold now, in words."""
        return self.checker.wrong(cells(matrix))

    def forget_connections(self, *selection: str) -> None:
        """Have connection tracking of all nodes forget everything, or what ``conntrack -D`` selects."""
        for node in self.nodes:
            for family in ("ipv4", "ipv6"):
                done = process.run(["conntrack", "-D", "-f", family, *selection], netns_fd=node.ns.fd)
                # Failures that are none: there was nothing, or it went by itself in between.
                if "0 flow entries" not in done.stderr and "such conntrack doesn't exist" not in done.stderr:
                    done.check()

    # Making

    def _namespace(self, label: str) -> Namespace:
        made = Namespace(label)
        self._stack.callback(made.close)
        return made

    def _machine(self, name: str, number: int) -> tuple[Namespace, Mapping[int, Any]]:
        ns = self._namespace(name)
        ns.call(_furnish)
        port = f"seg{number}"
        with NetlinkSocket() as socket:
            Links(socket).create_veth(VethEnd(port, self._hub.fd), VethEnd("eth0", ns.fd))
        self._hub.links.set_master(port, "segment")
        self._hub.links.set_up(port)
        addresses = {4: ipaddress.ip_address(f"172.20.0.{number}"), 6: ipaddress.ip_address(f"fd20::{number}")}
        ns.address("eth0", f"{addresses[4]}/24")
        ns.address("eth0", f"{addresses[6]}/64")
        ns.run("ip", "route", "add", "default", "via", HUB)
        return ns, addresses


_POOL = objects.make("IPPool", "pool", {"cidr": "10.65.0.0/16", "blockSize": 26, "natOutgoing": False})


def _lead(machine: Site, node: Node) -> None:
    """Routes of a machine to the pods of a node."""
    place = node.name[1:]
    machine.ns.run("ip", "route", "add", f"10.65.{place}.0/24", "via", node.ip)
    machine.ns.run("ip", "-6", "route", "add", f"fd65:{place}::/64", "via", node.ip6)


def _program(family: int) -> str:
    return "iptables" if family == 4 else "ip6tables"


def _make_segment(hub: Namespace) -> None:
    hub.call(_furnish)
    hub.links.create_bridge("segment")
    hub.links.set_up("segment")
    hub.address("segment", f"{HUB}/24")
    hub.address("segment", "fd20::1/64")


def _furnish() -> None:
    """Addresses are usable at once, routes stay as they are, and every refusal is told."""
    sysctl.write("net/ipv6/conf/default/accept_dad", 0)
    for key in ("all", "default"):
        sysctl.write(f"net/ipv4/conf/{key}/accept_redirects", 0)
    sysctl.write("net/ipv4/icmp_ratelimit", 0)
    sysctl.write("net/ipv6/icmp/ratelimit", 0)
