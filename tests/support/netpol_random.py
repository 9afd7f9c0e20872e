"""Random network-policy cases: policies of both kinds in tiers, and steps that change them.

The evaluator fills the tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from calipy.conformance.netpol_case import Case, Cluster
from calipy.conformance.netpol_verdicts import snapshot_of, verdict_of

T = TypeVar("T")

LABELS = {"app": ("web", "db", "job"), "zone": ("x", "y"), "canary": ("yes",)}
NETS4 = (
    "10.65.1.0/26", "10.65.2.0/26", "10.65.1.10/32", "192.0.2.0/24", "192.0.2.77/32", "172.20.0.0/24",
    "0.0.0.0/1", "0.0.0.0/0",
)  # fmt: skip
NETS6 = ("fd00:65:1::/64", "fd00:65:2::/64", "2001:db8:2::/64", "2001:db8:2::10/128", "::/0")
PORTS = (8080, 9090, "http", "dns", "8000:8999", "9090:9091")
MANY_PORTS = (*range(8100, 8110), "8200:8299", "8300:8399", 9899, "5000:5352", "7000:7999", 5353, 8080, "9000:9089")
"""More than one multiport match holds, in any part that is cut from the end."""
PROBES = (
    "tcp/8080", "tcp/9090", "udp/5353", "udp/8080", "sctp/9899", "icmp/8", "icmp/13",
    "tcp6/8080", "udp6/5353", "icmp6/128", "tcp/8080+sport=30500",
    "sctp6/9899", "udp6/8080", "tcp6/9090", "tcp/22", "tcp/6443", "udp/4789", "tcp6/8080+sport=30500",
)  # fmt: skip
PROFILES = ("open", "odd")
TIERS = ("first", "second", "default")


def make_case(
    seed: int, *, steps: int = 3, hosts: bool = False, policies: tuple[int, int] = (2, 5), probes: int = 4
) -> dict[str, Any]:
    """A case of six pods on two nodes, the nodes and two externals; the same for the same seed.

    With ``hosts`` the nodes' own interfaces have policy too: normal, for forwarded packets, before DNAT and untracked.
    ``policies`` says how many there are at the start, at least and at most; ``probes``, how many tables a state has.
    """
    return _Maker(random.Random(seed), hosts=hosts, policies=policies).case(f"random-{seed}", steps, probes)


def policies_of(document: dict[str, Any]) -> int:
    """How many policies a case has in all its states, each version of one counted."""
    actions = [action for step in document["steps"] for action in step["actions"]]
    found = [*document["policies"], *(action["apply"] for action in actions if "apply" in action)]
    return sum(one["kind"].endswith("NetworkPolicy") for one in found)


class _Maker:
    def __init__(self, chance: random.Random, *, hosts: bool, policies: tuple[int, int]) -> None:
        self._random = chance
        self._hosts = hosts
        self._policies = policies

    def case(self, name: str, steps: int, tables: int) -> dict[str, Any]:
        """See ``make_case``."""
        probes = self._random.sample(PROBES, tables)
        document: dict[str, Any] = {
            "format": "netpol-case/1",
            "id": name,
            "family": "calico",
            "theme": "random",
            "nodes": [
                {"name": "n1", "ip": "172.20.0.11", "ip6": "fd00:20::11"},
                {"name": "n2", "ip": "172.20.0.12", "ip6": "fd00:20::12"},
            ],
            "namespaces": [{"name": name, "labels": self._labels()} for name in ("shop", "bank")],
            "serviceAccounts": [{"namespace": "shop", "name": "robot", "labels": self._labels()}],
            "pods": [
                self._pod(space, pod, number) for number, (space, pod) in enumerate(_PODS)
            ],
            "externals": [
                {"name": "alpha", "ip": "192.0.2.10", "ip6": "2001:db8:2::10"},
                {"name": "bravo", "ip": "192.0.2.77", "ip6": "2001:db8:2::77"},
            ],
            "policies": [
                self._tier("first", 1),
                self._tier("second", 2),
                *(self._network_set(number) for number in range(2)),
                *(self._profile(name) for name in PROFILES),
                *(self._host_endpoint(number) for number in (1, 2) if self._hosts and self._perhaps(0.8)),
                *(self._all_interfaces(number) for number in (1, 2) if self._hosts and self._perhaps(0.25)),
                *self._all_policies(),
            ],
            "settings": {"endpointToHostAction": self._one(("Accept", "Drop"))},
            "probes": probes,
            "expect": {"endpoints": [], "tables": {}},
        }  # fmt: skip
        document["steps"] = [
            {"name": f"step {number}", "actions": self._actions(), "expect": {"endpoints": [], "tables": {}}}
            for number in range(1, steps + 1)
        ]
        states = Case(name, "", "", (), document).states()
        for state, place in zip(states, (document, *document["steps"]), strict=True):
            place["expect"] = _expectation(state.cluster, probes)
        return document

    def _one(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def _perhaps(self, probability: float) -> bool:
        return self._random.random() < probability

    def _labels(self) -> dict[str, str]:
        return {name: self._one(values) for name, values in LABELS.items() if self._perhaps(0.6)}

    def _pod(self, namespace: str, name: str, number: int) -> dict[str, Any]:
        node = 1 + number % 2
        return {
            "namespace": namespace,
            "name": name,
            "node": f"n{node}",
            "ip": f"10.65.{node}.{10 + number}",
            "ip6": f"fd00:65:{node}::{10 + number}",
            "labels": self._labels(),
            **({"serviceAccount": "robot"} if name == "bot" else {}),
            **({"profiles": self._random.sample(PROFILES, self._random.randint(0, 2))} if self._perhaps(0.15) else {}),
            "ports": [
                {"name": "http", "port": self._one((8080, 9090)), "protocol": "TCP"},
                {"name": "dns", "port": self._one((5353, 8080)), "protocol": "UDP"},
            ],
        }

    def _tier(self, name: str, order: int) -> dict[str, Any]:
        return _calico("Tier", name, {"order": order, "defaultAction": self._one(("Pass", "Pass", "Deny"))})

    def _profile(self, name: str) -> dict[str, Any]:
        rules = [self._rule() for _ in range(self._random.randint(1, 2))]
        sides = {"ingress": rules, "egress": [{"action": "Allow"}]}
        return _calico("Profile", name, {**sides, "labelsToApply": self._labels()})

    def _host_endpoint(self, number: int) -> dict[str, Any]:
        addresses = [f"172.20.0.1{number}", f"fd00:20::1{number}"]
        spec = {"node": f"n{number}", "interfaceName": "uplink0", "expectedIPs": addresses}
        if self._perhaps(0.5):
            spec["profiles"] = ["open"]
        return _calico("HostEndpoint", f"n{number}-uplink", spec, labels=self._labels())

    def _all_interfaces(self, number: int) -> dict[str, Any]:
        """A host endpoint for every interface of a node that no other one covers."""
        spec = {"node": f"n{number}", "interfaceName": "*", "profiles": ["open", "odd"][: self._random.randint(0, 2)]}
        return _calico("HostEndpoint", f"n{number}-all", spec, labels=self._labels())

    def _all_policies(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        wanted = self._random.randint(*self._policies)
        while len(found) < wanted:
            if self._policies[1] > 5 and self._perhaps(0.2):
                found += self._group(len(found), self._one((2, 2, 3, 4, 7, 8)))
            else:
                found.append(self._policy(len(found)))
        return found

    def _group(self, number: int, size: int) -> list[dict[str, Any]]:
        """Policies of one selector that come one after another, so that endpoints may share them in one chain."""
        tier, order = self._one(TIERS), self._one((5, 1000))
        selector = self._one(("all()", self._selector(1)))
        prefix = "" if tier == "default" else f"{tier}."
        found = []
        for member in range(size):
            spec = {"tier": tier, "selector": selector, "order": order, **self._sides()}
            kind = "StagedGlobalNetworkPolicy" if self._perhaps(0.1) else "GlobalNetworkPolicy"
            found.append(_calico(kind, f"{prefix}g{number}-{member}", spec))
        return found

    def _host_policy(self, number: int) -> dict[str, Any]:
        """A global policy for forwarded packets, before DNAT or untracked."""
        kind = self._one(("", "preDNAT", "doNotTrack"))
        types = ["Ingress"] if kind == "preDNAT" else self._one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        spec: dict[str, Any] = {
            "selector": self._one(("all()", self._selector(1))),
            "types": types,
            "applyOnForward": True,
            "order": self._one((1, 5, 2000)),
            **({kind: True} if kind else {}),
        }
        spec |= {side.lower(): [self._rule() for _ in range(self._random.randint(1, 3))] for side in types}
        if kind:
            for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
                rule["action"] = self._one(("Allow", "Deny"))
        if self._perhaps(0.3):  # one that counts, or the ways by which these lists are skipped would be seldom seen
            side = self._one(types).lower()
            spec[side] = [{"action": self._one(("Allow", "Deny")), "protocol": self._one(("TCP", "UDP"))}]
        return _calico("GlobalNetworkPolicy", f"h{number}", spec)

    def _network_set(self, number: int) -> dict[str, Any]:
        nets = self._random.sample(NETS4 + NETS6, self._random.randint(1, 3))
        name, labels = f"set{number}", self._labels()
        if self._perhaps(0.3):
            return _calico("NetworkSet", name, {"nets": nets}, labels=labels, namespace=self._one(("shop", "bank")))
        return _calico("GlobalNetworkSet", name, {"nets": nets}, labels=labels)

    def _selector(self, depth: int = 2) -> str:
        if depth and self._perhaps(0.35):
            left, right = self._selector(depth - 1), self._selector(depth - 1)
            return self._one((f"({left} && {right})", f"({left} || {right})", f"!({left})"))
        name = self._one(tuple(LABELS))
        value = self._one(LABELS[name])
        return self._one(
            (
                f"{name} == '{value}'",
                f"{name} != '{value}'",
                f"has({name})",
                f"!has({name})",
                f"{name} in {{'{value}', 'none'}}",
                f"{name} not in {{'{value}'}}",
                f"{name} starts with '{value[0]}'",
                "all()",
            )
        )

    def _nets(self, version: int) -> list[str]:
        nets = NETS6 if version == 6 else NETS4
        if self._perhaps(0.2):
            nets = NETS4 + NETS6
        return self._random.sample(nets, self._random.choice((1, 1, 2, 2, 3, 4)))

    def _entity(self, protocol: str | int | None, version: int, *, destination: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._perhaps(0.25):  # or rules with many conditions would hardly ever match
            return found
        options: list[tuple[str, float, Callable[[], Any]]] = [
            ("selector", 0.35, self._selector),
            ("notSelector", 0.15, self._selector),
            ("namespaceSelector", 0.2, lambda: self._one(("all()", "global()", "zone == 'x'", "!has(zone)"))),
            ("nets", 0.2, lambda: self._nets(version)),
            ("notNets", 0.15, lambda: self._nets(version)),
            ("serviceAccounts", 0.1, lambda: self._one(({"names": ["robot"]}, {"selector": "has(app)"}))),
        ]
        if protocol in {"TCP", "UDP", "SCTP", 6} and destination:
            options += [("ports", 0.5, self._ports), ("notPorts", 0.15, self._ports)]
        elif protocol in {"TCP", "UDP", "SCTP", 6}:
            options += [("ports", 0.1, lambda: ["30000:65535"]), ("notPorts", 0.1, lambda: [30500])]
        elif protocol is None and destination:
            options += [("ports", 0.15, lambda: ["http"]), ("notPorts", 0.1, lambda: ["dns", "http"])]
        for name, probability, make in options:
            if self._perhaps(probability):
                found[name] = make()
        return found

    def _ports(self) -> list[Any]:
        if self._perhaps(0.15):
            return [*MANY_PORTS[-self._random.randint(8, len(MANY_PORTS)) :], *self._random.sample(PORTS, 1)]
        return self._random.sample(PORTS, self._random.randint(1, 3))

    def _rule(self) -> dict[str, Any]:
        version = self._one((4, 4, 6))
        protocol = self._one((None, "TCP", "TCP", "UDP", "SCTP", 6, "ICMPv6" if version == 6 else "ICMP"))
        rule: dict[str, Any] = {"action": self._one(("Allow", "Allow", "Deny", "Pass", "Log"))}
        if protocol:
            rule["protocol"] = protocol
        if self._perhaps(0.03 if protocol else 0.2):
            rule["notProtocol"] = self._one(("TCP", "UDP", 132))
        if protocol in {"ICMP", "ICMPv6"}:
            kinds = ({"type": 8}, {"type": 13}, {"type": 8, "code": 0}) if version == 4 else ({"type": 128},)
            rule |= {name: self._one(kinds) for name in ("icmp", "notICMP") if self._perhaps(0.5)}
        if protocol in {"ICMP", "ICMPv6"} or self._perhaps(0.2):
            rule["ipVersion"] = version
        if self._perhaps(0.05):
            rule["metadata"] = {"annotations": {"why": 'it\'s "quoted"; $(so)'}}
        rule["source"] = self._entity(protocol, version, destination=False)
        rule["destination"] = self._entity(protocol, version, destination=True)
        if protocol in {"TCP", "UDP"} and self._perhaps(0.15):
            nets = NETS6 if version == 6 else NETS4
            rule["source"] |= {"nets": self._random.sample(nets, 3)}
            rule["destination"] |= {"nets": self._random.sample(nets, 2), "ports": list(MANY_PORTS)}
        return rule

    def _sides(self) -> dict[str, Any]:
        """Types and rules of a policy; without types Calico infers them."""
        types = self._one((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        rules = {side.lower(): [self._rule() for _ in range(self._random.randint(0, 3))] for side in types}
        if "egress" in rules and self._perhaps(0.1):
            service = {"services": {"name": "front", "namespace": "shop"}}
            rules["egress"].insert(0, {"action": self._one(("Allow", "Deny")), "destination": service})
        return rules if self._perhaps(0.1) else {"types": types, **rules}

    def _policy(self, number: int) -> dict[str, Any]:
        if self._hosts and self._perhaps(0.5):
            return self._host_policy(number)
        if self._perhaps(0.3):
            return self._kubernetes_policy(number)
        tier = self._one(TIERS)
        spec = {
            "tier": tier,
            "selector": self._selector(),
            **({"order": self._one((1, 5, 1000, 2000))} if self._perhaps(0.7) else {}),
            **({"serviceAccountSelector": self._one(("has(app)", "all()"))} if self._perhaps(0.1) else {}),
            **self._sides(),
        }
        name = f"{tier}.p{number}" if tier != "default" else f"p{number}"
        staged = "Staged" if self._perhaps(0.05) else ""
        if self._perhaps(0.5):
            return _calico(f"{staged}NetworkPolicy", name, spec, namespace=self._one(("shop", "bank")))
        if self._perhaps(0.3):
            spec["namespaceSelector"] = self._one(("zone == 'x'", "has(zone)", "all()"))
        return _calico(f"{staged}GlobalNetworkPolicy", name, spec)

    def _kubernetes_policy(self, number: int) -> dict[str, Any]:
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"k{number}", "namespace": self._one(("shop", "bank"))},
            "spec": {
                "podSelector": self._label_selector(),
                "policyTypes": self._one((["Ingress"], ["Egress"], ["Ingress", "Egress"])),
                "ingress": [self._kubernetes_rule("from") for _ in range(self._random.randint(0, 2))],
                "egress": [self._kubernetes_rule("to") for _ in range(self._random.randint(0, 2))],
            },
        }

    def _label_selector(self) -> dict[str, Any]:
        name = self._one(tuple(LABELS))
        value = self._one(LABELS[name])
        return self._one(
            (
                {},
                {"matchLabels": {name: value}},
                {"matchExpressions": [{"key": name, "operator": "NotIn", "values": [value]}]},
                {"matchExpressions": [{"key": name, "operator": self._one(("Exists", "DoesNotExist"))}]},
            )
        )

    def _kubernetes_rule(self, side: str) -> dict[str, Any]:
        peers: list[dict[str, Any]] = []
        for _ in range(self._random.randint(0, 2)):
            kind = self._random.randrange(3)
            if kind == 0:
                block = self._one(({"cidr": "10.65.0.0/16", "except": ["10.65.1.0/26"]}, {"cidr": self._one(NETS4)}))
                peers.append({"ipBlock": block})
            else:
                peer = {"podSelector": self._label_selector()}
                peers.append(peer | ({"namespaceSelector": self._label_selector()} if kind == 2 else {}))
        ports = [
            {"port": 8000, "endPort": 8999},
            {"port": "http"},
            {"port": "dns", "protocol": "UDP"},
            {"protocol": "SCTP"},
            {"port": 5353, "protocol": "UDP"},
        ]
        chosen = self._random.sample(ports, self._random.randint(0, 2))
        return {**({side: peers} if peers else {}), **({"ports": chosen} if chosen else {})}

    def _actions(self) -> list[dict[str, Any]]:
        if self._perhaps(0.2):
            return self._replacement()
        return [self._action() for _ in range(self._random.randint(1, 2))]

    def _replacement(self) -> list[dict[str, Any]]:
        """A pod goes, and another one of the same name comes to its address, or to one of the other node."""
        number = self._random.randrange(len(_PODS))
        space, pod = _PODS[number]
        moved = number + 31 if self._perhaps(0.5) else number
        return [{"deletePod": f"{space}/{pod}"}, {"addPod": self._pod(space, pod, moved)}]

    def _action(self) -> dict[str, Any]:
        space, pod = self._one(_PODS)
        return self._one(
            (
                {"apply": self._policy(self._random.randrange(5))},
                {"apply": self._policy(self._random.randrange(5, 8))},
                {"apply": self._network_set(self._random.randrange(3))},
                {"apply": self._profile("odd")},
                {"apply": self._tier("first", self._one((1, 3)))},
                {"setPodLabels": {"pod": f"{space}/{pod}", "labels": self._labels()}},
                {"setNamespaceLabels": {"namespace": space, "labels": self._labels()}},
                {"setServiceAccountLabels": {"namespace": "shop", "name": "robot", "labels": self._labels()}},
            )
        )


_PODS = (("shop", "web"), ("shop", "bot"), ("shop", "cart"), ("bank", "web"), ("bank", "desk"), ("bank", "bot"))


def _calico(
    kind: str, name: str, spec: dict[str, Any], *, namespace: str = "", labels: dict[str, str] | None = None
) -> dict[str, Any]:
    optional = {"namespace": namespace, "labels": labels}
    metadata = {"name": name, **{member: value for member, value in optional.items() if value}}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def _expectation(cluster: Cluster, probes: Sequence[str]) -> dict[str, Any]:
    snapshot = snapshot_of(cluster)
    endpoints = [*(f"{space}/{name}" for space, name in _PODS), "node:n1", "node:n2", "ext:alpha", "ext:bravo"]

    def cell(probe: str, source: str, destination: str) -> str:
        if source == destination:
            return "S"
        if source.startswith("ext:") and destination.startswith("ext:"):
            return "-"
        return "A" if verdict_of(snapshot, cluster, probe, source, destination).allowed else "D"

    tables = {
        probe: {source: "".join(cell(probe, source, destination) for destination in endpoints) for source in endpoints}
        for probe in probes
    }
    return {"endpoints": endpoints, "tables": tables}
