"""What the graph says about single situations."""

from __future__ import annotations

import msgspec
import pytest

from calipy.datastore.keys import ResourceKey
from calipy.felix.graph.graph import Graph
from calipy.felix.messages import Changes, Host, IPSet, IPSetDelta, PolicyID
from calipy.policy.selector import parse
from tests.support.enforced import enforce
from tests.support.objects import Object, global_policy, gone, make, namespace_profile, network_policy, pod

DB = pod("db", "10.65.1.2", app="db")
WEB = pod("web", "10.65.2.1", node="n2", app="web")
SHOP = namespace_profile("shop", team="blue")
FROM_WEB = [{"action": "Allow", "source": {"selector": "app == 'web'"}}]


def _set(selector: str) -> str:
    return parse(selector).unique_id()


def _running(*objects: Object) -> Graph:
    graph = Graph("n1")
    for key, value in objects:
        graph.on_update(key, value)
    graph.on_in_sync()
    graph.flush()
    return graph


def _step(graph: Graph, *objects: Object) -> Changes:
    for key, value in objects:
        graph.on_update(key, value)
    return graph.flush()


def test_nothing_before_in_sync() -> None:
    """Until the snapshot is complete the graph says nothing, whatever it has seen."""
    graph = Graph("n1")
    for key, value in (DB, SHOP, network_policy("p", selector="all()")):
        graph.on_update(key, value)
        assert not graph.flush()
    assert not graph.flush().in_sync
    graph.on_in_sync()
    assert graph.flush().endpoints


def test_only_local_endpoints_and_what_concerns_them() -> None:
    """A policy that selects no local endpoint is not active and needs no sets."""
    state = enforce([WEB, SHOP, network_policy("p", selector="app == 'web'", ingress=FROM_WEB)])
    assert not state.endpoints
    assert not state.policies
    assert not state.ip_sets


def test_node_names_with_dashes() -> None:
    """``n1`` does not claim endpoints of ``n1-a``, and the other way round."""
    other = pod("x", "10.65.3.1", node="n1-a")
    assert not enforce([other]).endpoints
    assert len(enforce([other], hostname="n1-a").endpoints) == 1
    assert not enforce([DB], hostname="n1-a").endpoints


def test_members_come_as_deltas() -> None:
    """A new member of a known set is a delta of just that member."""
    graph = _running(DB, WEB, SHOP, network_policy("p", selector="app == 'db'", ingress=FROM_WEB))
    changes = _step(graph, pod("w2", "10.65.2.7", node="n3", app="web"))
    [delta] = changes.ip_sets.values()
    ident = _set("(projectcalico.org/namespace == 'shop') && (app == 'web')")
    assert delta == IPSetDelta(ident, frozenset({"10.65.2.7"}), frozenset())
    assert not changes.policies
    assert not changes.endpoints


def test_shared_address_is_counted() -> None:
    """An address that two endpoints have leaves the set with the last of them."""
    twin = pod("twin", "10.65.2.1", node="n3", app="web")
    graph = _running(DB, WEB, twin, SHOP, network_policy("p", selector="app == 'db'", ingress=FROM_WEB))
    assert not _step(graph, gone(twin))
    [delta] = _step(graph, gone(WEB)).ip_sets.values()
    assert isinstance(delta, IPSetDelta)
    assert delta.removed == {"10.65.2.1"}


def test_set_survives_replacement_of_its_policy() -> None:
    """A policy deleted and created again under another name within one flush keeps the set, without a word about it."""
    old = network_policy("old", selector="app == 'db'", ingress=FROM_WEB)
    new = network_policy("new", selector="app == 'db'", ingress=FROM_WEB)
    changes = _step(_running(DB, WEB, SHOP, old), gone(old), new)
    assert not changes.ip_sets
    assert set(changes.policies) == {PolicyID("NetworkPolicy", "shop", "old"), PolicyID("NetworkPolicy", "shop", "new")}


def test_selector_and_not_selector_are_two_matches() -> None:
    """A pod that a network set also covers is judged by both conditions separately."""
    rule = {"action": "Allow", "source": {"selector": "app == 'web'", "notSelector": "role == 'banned'"}}
    state = enforce([DB, WEB, SHOP, network_policy("p", selector="app == 'db'", ingress=[rule])])
    [found] = state.policies[PolicyID("NetworkPolicy", "shop", "p")].inbound
    assert found.src.ip_sets == (_set("(projectcalico.org/namespace == 'shop') && (app == 'web')"),)
    assert found.src.not_ip_sets == (_set("role == 'banned'"),)


def test_not_selector_alone_means_own_namespace() -> None:
    """In a namespaced policy ``notSelector`` without ``selector`` still means endpoints of the namespace."""
    rule = {"action": "Allow", "source": {"notSelector": "app == 'web'"}}
    state = enforce([DB, SHOP, network_policy("p", selector="app == 'db'", ingress=[rule])])
    [found] = state.policies[PolicyID("NetworkPolicy", "shop", "p")].inbound
    assert found.src.ip_sets == (_set("projectcalico.org/namespace == 'shop'"),)


def test_named_port_replaces_the_selector_set() -> None:
    """A side with only named ports needs no selector set; with a number too it needs both."""
    http = {"selector": "app == 'web'", "ports": ["http"]}
    both = {"selector": "app == 'web'", "ports": ["http", 53]}
    rules = [{"action": "Allow", "protocol": "TCP", "destination": d} for d in (http, both)]
    web = pod("web", "10.65.2.1", "fd00::1", node="n2", app="web", ports={"http": 8080, "dns": 53})
    state = enforce([DB, web, SHOP, network_policy("p", selector="app == 'db'", egress=rules)])
    first, second = state.policies[PolicyID("NetworkPolicy", "shop", "p")].outbound
    assert not first.dst.ip_sets
    assert second.dst.ip_sets
    [named] = first.dst.named_ports
    assert state.ip_sets[named] == ("ip,port", frozenset({"10.65.2.1,tcp:8080", "fd00::1,tcp:8080"}))


def test_missing_profile_denies() -> None:
    """A profile that is named but not there is a stand-in that denies, until it comes."""
    graph = Graph("n1")
    graph.on_update(*DB)
    graph.on_in_sync()
    missing = graph.flush().profiles["kns.shop"]
    assert missing is not None
    assert missing.missing
    assert [rule.action for rule in (*missing.inbound, *missing.outbound)] == ["deny", "deny"]
    found = _step(graph, SHOP).profiles["kns.shop"]
    assert found is not None
    assert [rule.action for rule in found.inbound] == ["allow"]


def test_invalid_profile_denies_and_is_reported() -> None:
    """A profile with a rule that does not parse counts as missing, and says why."""
    bad = make("Profile", "kns.shop", {"ingress": [{"action": "Perhaps"}]})
    graph = _running(DB)
    assert not _step(graph, bad).profiles
    assert "spec.ingress[0].action" in graph.problems[bad[0]]
    assert "Profile(kns.shop) is treated as absent" in graph.warnings[0]
    _step(graph, SHOP)
    assert not graph.problems
    assert not graph.warnings


def test_default_allow_profile_needs_no_object() -> None:
    """``projectcalico-default-allow`` exists without being stored, and cannot be redefined."""
    name = "projectcalico-default-allow"
    state = enforce(
        [pod("db", "10.65.1.2", profiles=(name,)), make("Profile", name, {"ingress": [{"action": "Deny"}]})]
    )
    assert [rule.action for rule in state.profiles[name].inbound] == ["allow"]


def test_own_label_beats_profile_and_first_profile_beats_second() -> None:
    """Inherited labels lose against own ones, later profiles against earlier ones."""
    first = make("Profile", "first", {"labelsToApply": {"a": "first", "b": "first"}})
    second = make("Profile", "second", {"labelsToApply": {"a": "second", "b": "second", "c": "second"}})
    target = pod("db", "10.65.1.2", profiles=("first", "second"), a="own")
    policies = [
        global_policy(f"{label}-{value}", selector=f"{label} == '{value}'")
        for label in "abc"
        for value in ("own", "first", "second")
    ]
    found = {ident.name for ident in enforce([target, first, second, *policies]).policies}
    assert found == {"a-own", "b-first", "c-second"}


def test_endpoints_own_prefixed_labels_do_not_count() -> None:
    """An endpoint cannot claim labels of a namespace or a service account."""
    liar = pod("db", "10.65.1.2", **{"pcns.team": "red"})
    assert not enforce([liar, SHOP, global_policy("p", namespaceSelector="team == 'red'")]).policies
    assert enforce([liar, SHOP, global_policy("p", namespaceSelector="team == 'blue'")]).policies


NAMELESS = make(
    "WorkloadEndpoint", "n1-k8s-db", {"interfaceName": "c", "ipNetworks": ["10.0.0.1/32"]}, namespace="shop"
)


@pytest.mark.parametrize(
    "broken",
    [pod("db", "10.65.1.2", interface=""), pod("db"), NAMELESS],
    ids=["no interface", "no address", "malformed name"],
)
def test_invalid_endpoint_is_absent(broken: Object) -> None:
    """Felix ignores such endpoints, as members and as local ones, and says so."""
    graph = _running(pod("web", "10.65.1.1"), SHOP)
    _step(graph, network_policy("p", ingress=[{"action": "Allow", "source": {"selector": "all()"}}]))
    assert not _step(graph, broken)
    assert broken[0] in graph.problems
    assert not _step(graph, gone(broken))
    assert not graph.problems


def test_tier_order_and_default_action() -> None:
    """Tiers by order, policies by order then name; a tier nobody created comes last and denies."""
    objects = [
        pod("db", "10.65.1.2", app="db"),
        make("Tier", "first", {"order": 5, "defaultAction": "Pass"}),
        make("Tier", "unordered", {}),
        global_policy("c", tier="first"),
        global_policy("b", tier="first", order=7),
        global_policy("a", tier="first"),
        global_policy("n", tier="nowhere", order=1),
        global_policy("d"),
        global_policy("u", tier="unordered"),
        global_policy("k", tier="kube-admin", types=["Egress"]),
    ]
    [endpoint] = enforce(objects).endpoints.values()
    found = [
        (t.name, t.default_action, [p.name for p in t.ingress], [p.name for p in t.egress]) for t in endpoint.tiers
    ]
    assert found == [
        ("first", "Pass", ["b", "a", "c"], []),
        ("kube-admin", "Pass", [], ["k"]),
        ("default", "Deny", ["d"], []),
        ("unordered", "Deny", ["u"], []),
        ("nowhere", "Deny", ["n"], []),
    ]  # fmt: skip


def test_staged_policies_are_listed_and_not_enforced() -> None:
    """A staged policy is said to be active, without rules, and no endpoint names it."""
    deny = {"selector": "all()", "ingress": [{"action": "Deny", "source": {"selector": "x == 'y'"}}]}
    kubernetes = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}
    state = enforce([
        DB,
        SHOP,
        make("StagedNetworkPolicy", "s", deny, namespace="shop"),
        make("StagedGlobalNetworkPolicy", "g", deny),
        make("StagedKubernetesNetworkPolicy", "k", kubernetes, namespace="shop"),
        make("StagedNetworkPolicy", "del", {"stagedAction": "Delete"}, namespace="shop"),
    ])  # fmt: skip
    assert {(ident.name, found.staged) for ident, found in state.policies.items()} == {
        ("s", True),
        ("g", True),
        ("k", True),
    }
    [endpoint] = state.endpoints.values()
    assert not endpoint.tiers
    assert not state.ip_sets


def test_host_endpoint_policy_does_not_reach_pods() -> None:
    """``doNotTrack`` and ``preDNAT`` policies concern host endpoints only."""
    policies = [
        global_policy("raw", doNotTrack=True, applyOnForward=True),
        global_policy("dnat", preDNAT=True, applyOnForward=True),
        global_policy("forward", applyOnForward=True),
    ]
    [endpoint] = enforce([DB, *policies]).endpoints.values()
    assert [p.name for tier in endpoint.tiers for p in tier.ingress] == ["forward"]


def test_host_endpoints_and_sets_are_members() -> None:
    """Host endpoints and network sets are members by their labels; ``/0`` stands as its halves."""
    rule = {"action": "Allow", "source": {"selector": "role == 'peer'"}}
    state = enforce([
        DB,
        global_policy("p", ingress=[rule]),
        make("HostEndpoint", "h", {"node": "n2", "expectedIPs": ["172.20.0.12"]}, labels={"role": "peer"}),
        make("GlobalNetworkSet", "g", {"nets": ["0.0.0.0/0", "10.1.2.3/8", "fd00::1"]}, labels={"role": "peer"}),
    ])  # fmt: skip
    assert state.ip_sets[_set("role == 'peer'")] == (
        "net",
        frozenset({"172.20.0.12", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "fd00::1"}),
    )


def test_namespace_selectors_of_rules() -> None:
    """``all()`` means in any namespace, ``global()`` in none: host endpoints and global sets are told apart."""
    everyone = {"action": "Allow", "source": {"namespaceSelector": "all()"}}
    nobody = {"action": "Allow", "source": {"namespaceSelector": "global()"}}
    objects = [
        DB,
        global_policy("p", ingress=[everyone, nobody]),
        make("GlobalNetworkSet", "g", {"nets": ["192.0.2.1"]}),
        make("NetworkSet", "n", {"nets": ["192.0.2.2"]}, namespace="shop"),
    ]
    state = enforce(objects)
    assert state.ip_sets[_set("has(projectcalico.org/namespace)")][1] == {"10.65.1.2", "192.0.2.2"}
    assert state.ip_sets[_set("!has(projectcalico.org/namespace)")][1] == {"192.0.2.1"}


def test_rules_with_http_match_nothing() -> None:
    """What nobody here can check must not let packets through."""
    rule = {"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"]}}
    [policy] = enforce([DB, SHOP, network_policy("p", ingress=[rule])]).policies.values()
    assert policy.inbound == ()


def test_host_addresses() -> None:
    """A node's addresses come from BGP, else from its list; bare, by family."""
    nodes = [
        make("Node", "n1", {"bgp": {"ipv4Address": "172.20.0.11/24", "ipv6Address": "fd00:20::11/64"}}),
        make("Node", "n2", {"addresses": [{"address": "172.20.0.12", "type": "InternalIP"}]}),
        make("Node", "n3", {}),
    ]
    assert enforce(nodes).hosts == {
        "n1": Host("n1", "172.20.0.11", "fd00:20::11", local=True),
        "n2": Host("n2", "172.20.0.12"),
        "n3": Host("n3"),
    }


def test_datastore_ready_is_known() -> None:
    """The flag that lets Felix begin is read from ClusterInformation."""
    graph = Graph("n1")
    assert graph.datastore_ready is None
    graph.on_update(*make("ClusterInformation", "default", {"datastoreReady": True, "clusterGUID": "ab"}))
    assert graph.datastore_ready is True
    graph.on_in_sync()
    assert graph.flush().config == {"ClusterGUID": "ab"}


def test_other_kinds_are_ignored() -> None:
    """Objects that do not concern Felix, known or not, do no harm."""
    graph = _running()
    graph.on_update(ResourceKey("BGPPeer", "p"), None)
    graph.on_update(ResourceKey("Invented", "p"), object())
    assert not graph.flush()


def test_whole_set_on_first_use() -> None:
    """A set is sent whole once, with everything that already matches."""
    graph = _running(DB, WEB, SHOP)
    changes = _step(graph, network_policy("p", selector="app == 'db'", ingress=FROM_WEB))
    [found] = changes.ip_sets.values()
    assert isinstance(found, IPSet)
    assert found.members == {"10.65.2.1"}


def test_the_key_counts_not_the_metadata() -> None:
    """A policy whose stored metadata name no namespace, or another name, still belongs where its key says."""
    key, resource = network_policy("default.p", selector="app == 'db'")
    stray = msgspec.structs.replace(
        resource, metadata=msgspec.structs.replace(resource.metadata, name="p", namespace="")
    )
    elsewhere = pod("db", "10.65.1.9", namespace="bank", app="db")
    state = enforce([DB, elsewhere, (key, stray)])
    assert list(state.policies) == [PolicyID("NetworkPolicy", "shop", "default.p")]
    assert [e.id.workload for e in state.endpoints.values() if e.tiers] == ["shop/db"]


def test_ranges_of_announced_services() -> None:
    """Those of BGPConfiguration default, sorted; a bad one is reported and changes nothing; gone with the object."""
    ranges = {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceExternalIPs": [{"cidr": "fd00:1::1/64"}, {}]}
    graph = _running()
    assert _step(graph, make("BGPConfiguration", "node.n1", ranges)).services is None
    found = _step(graph, make("BGPConfiguration", "default", ranges))
    assert found.services == ("10.96.0.0/12", "fd00:1::/64")
    assert not _step(graph, make("BGPConfiguration", "default", {**ranges, "asNumber": 64513}))
    bad = make("BGPConfiguration", "default", {"serviceLoadBalancerIPs": [{"cidr": "nonsense"}]})
    assert not _step(graph, bad)
    assert "nonsense" in graph.problems[bad[0]]
    assert _step(graph, gone(bad)).services == ()
    assert not graph.problems
