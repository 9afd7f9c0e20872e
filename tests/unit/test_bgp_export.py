"""What is passed on: reflection by RFC 4456, and BGPFilters both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from calipy.bgp.advertise import Communities, Originated, Pools
from calipy.bgp.exporting import ExportPolicy
from calipy.bgp.filters import judge, missing
from calipy.bgp.importing import ImportPolicy
from calipy.bgp.path import NORMAL_LOCAL_PREFERENCE, Attributes, Peer, Segment
from calipy.bgp.peering import Session
from calipy.bgp.rib import Rib
from calipy.datastore.resources import (
    AddCommunity,
    BGPFilterRule,
    BGPFilterSpec,
    CommunityMatch,
    FilterOperation,
    PrefixLengthRange,
    PrependASPath,
    SetPriority,
)
from calipy.net import IPAddress, Prefix

HERE = IPv4Address("10.0.0.1")
CLUSTER = IPv4Address("244.0.0.1")
BLOCK: Prefix = ip_network("10.244.2.0/26")


def session(last: int, *, client: bool = False, peer_as: int = 64512, **fields: Any) -> Session:
    """A session of 10.0.0.1 to 10.0.0.<last>."""
    return Session(ip_address(f"10.0.0.{last}"), "global", peer_as, 64512, HERE, HERE, client=client, **fields)


CLIENT, CLIENT2, PLAIN, PLAIN2 = session(2, client=True), session(3, client=True), session(4), session(5)
OUTSIDE, OUTSIDE2 = session(6, peer_as=64500), session(7, peer_as=64501)
EVERYBODY = {one.peer: one for one in (CLIENT, CLIENT2, PLAIN, PLAIN2, OUTSIDE, OUTSIDE2)}


def learned(source: Session, **fields: Any) -> Rib:
    """A RIB that has learned BLOCK from one peer."""
    rib = Rib(lambda _peer, _prefix, attributes: ("", attributes))
    rib.peer_up(Peer(source.peer, source.peer_as, 64512, IPv4Address(int(source.peer))), 0)
    as_path = (Segment("sequence", (source.peer_as,)),) if source.external else ()
    rib.announce(source.peer, BLOCK, Attributes(source.peer, as_path=as_path, **fields))
    rib.set_metrics({source.peer: 0})
    rib.take_changes()
    return rib


def exports(policy: ExportPolicy, rib: Rib) -> dict[IPAddress, Mapping[Prefix, Attributes]]:
    """What each peer is told."""
    return dict(policy.exports(rib.loc_rib(), lambda one: one.local))


INNER_PEER = Peer(PLAIN.peer, 64512, 64512, IPv4Address("10.0.0.4"))
REFLECTOR = ExportPolicy(sessions=EVERYBODY, cluster_id=CLUSTER, passes_on=lambda _: True)


@pytest.mark.parametrize(
    ("source", "hear"),
    [
        (CLIENT, {CLIENT, CLIENT2, PLAIN, PLAIN2, OUTSIDE, OUTSIDE2}),
        (PLAIN, {CLIENT, CLIENT2, OUTSIDE, OUTSIDE2}),
        (OUTSIDE, {CLIENT, CLIENT2, PLAIN, PLAIN2, OUTSIDE, OUTSIDE2}),
    ],
)
def test_who_hears_of_what(source: Session, hear: set[Session]) -> None:
    """RFC 4456 6: from clients to all, from non-clients to clients, from eBGP to all."""
    told = exports(REFLECTOR, learned(source))
    assert {EVERYBODY[peer] for peer, routes in told.items() if BLOCK in routes} == hear


NO_EXPORT, NO_ADVERTISE, NO_EXPORT_SUBCONFED = (0xFFFF, 0xFF01), (0xFFFF, 0xFF02), (0xFFFF, 0xFF03)


@pytest.mark.parametrize(
    ("community", "inside"),
    [(NO_EXPORT, True), (NO_EXPORT_SUBCONFED, True), (NO_ADVERTISE, False)],
)
@pytest.mark.parametrize("accepted", [False, True])
def test_well_known_communities_are_heeded(community: tuple[int, int], inside: bool, accepted: bool) -> None:
    """RFC 1997: what must not leave the AS does not, what is for us alone is told nobody; no filter changes that."""
    sessions = {peer: replace(one, filters=("f",) if accepted else ()) for peer, one in EVERYBODY.items()}
    policy = replace(REFLECTOR, sessions=sessions, filters={"f": BGPFilterSpec(export_v4=(rule(),))})
    rib = learned(CLIENT, communities=((64512, 1), community))
    hear = {peer for peer, routes in exports(policy, rib).items() if BLOCK in routes}
    assert hear == ({peer for peer, one in EVERYBODY.items() if not one.external} if inside else set())
    why = policy.kept_back(OUTSIDE, BLOCK, rib.loc_rib(), HERE)
    assert "community" in why


def test_communities_of_own_routes_are_for_others() -> None:
    """What we are configured to tell with NO_EXPORT is told: it is the peer who keeps it."""
    own = ip_network("10.244.1.0/26")
    communities = Communities(standard=((ip_network("10.244.0.0/16"), (NO_EXPORT,)),))
    marked = BGPFilterSpec(
        export_v4=(rule(operations=(FilterOperation(add_community=AddCommunity(value="65535:65282")),)),)
    )
    policy = ExportPolicy(
        originated=Originated(blocks=frozenset({own}), communities=communities),
        sessions={OUTSIDE2.peer: OUTSIDE2, FABRIC.peer: FABRIC},
        filters={"f": marked},
    )
    told = exports(policy, learned(PLAIN))
    assert told[OUTSIDE2.peer][own].communities == (NO_EXPORT,)
    assert told[FABRIC.peer][own].communities == (NO_EXPORT, NO_ADVERTISE)


def test_reflected_attributes() -> None:
    """Next hop and LOCAL_PREF stay; ORIGINATOR_ID is the source's router ID, kept if there; cluster ID is put first."""
    told = exports(REFLECTOR, learned(CLIENT, local_preference=200))[CLIENT2.peer][BLOCK]
    assert (told.next_hop, told.local_preference) == (CLIENT.peer, 200)
    assert (told.originator_id, told.cluster_list) == (IPv4Address("10.0.0.2"), (CLUSTER,))
    before = {"originator_id": IPv4Address("9.9.9.9"), "cluster_list": (IPv4Address("8.8.8.8"),)}
    again = exports(REFLECTOR, learned(CLIENT, **before))[PLAIN.peer][BLOCK]
    assert (again.originator_id, again.cluster_list) == (IPv4Address("9.9.9.9"), (CLUSTER, IPv4Address("8.8.8.8")))
    out = exports(REFLECTOR, learned(CLIENT, local_preference=200))[OUTSIDE.peer][BLOCK]
    assert out == Attributes(HERE, as_path=(Segment("sequence", (64512,)),)), "eBGP: our AS, our next hop, no more"


def test_a_plain_node_passes_nothing_on() -> None:
    """Without cluster ID and without filters each node speaks for itself only."""
    plain = ExportPolicy(sessions=EVERYBODY, passes_on=lambda _: True)
    for source in (CLIENT, OUTSIDE):
        assert not any(exports(plain, learned(source)).values())


def test_sessions_of_one_kind_share_their_table() -> None:
    """A reflector with many clients computes their table once."""
    told = exports(REFLECTOR, learned(PLAIN))
    assert told[CLIENT.peer] is told[CLIENT2.peer]


# Filters


def rule(action: str = "Accept", **fields: Any) -> BGPFilterRule:
    """A rule."""
    return BGPFilterRule(action=action, **fields)


FABRIC = session(6, peer_as=64500, filters=("f",))
INNER = session(4, filters=("f",))


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({}, True),
        ({"cidr": "10.244.2.0/26", "match_operator": "Equal"}, True),
        ({"cidr": "10.244.0.0/16", "match_operator": "Equal"}, False),
        ({"cidr": "10.244.0.0/16", "match_operator": "NotEqual"}, True),
        ({"cidr": "10.244.0.0/16", "match_operator": "In"}, True),
        ({"cidr": "10.244.0.0/16", "match_operator": "NotIn"}, False),
        ({"cidr": "10.245.0.0/16", "match_operator": "NotIn"}, True),
        ({"cidr": "10.244.0.0/16", "match_operator": "In", "prefix_length": PrefixLengthRange(min=24, max=26)}, True),
        ({"cidr": "10.244.0.0/16", "match_operator": "In", "prefix_length": PrefixLengthRange(min=27)}, False),
        ({"cidr": "10.244.0.0/16", "match_operator": "In", "prefix_length": PrefixLengthRange(max=25)}, False),
        ({"source": "RemotePeers"}, True),
        ({"interface": "eth*"}, True),
        ({"interface": "bond*"}, False),
        ({"peer_type": "eBGP"}, True),
        ({"peer_type": "iBGP"}, False),
        ({"communities": CommunityMatch(values=("64500:7",))}, True),
        ({"communities": CommunityMatch(values=("64500:1:2",))}, False),
        ({"as_path_prefix": (64500,)}, True),
        ({"as_path_prefix": (64500, 65010)}, True),
        ({"as_path_prefix": (65010,)}, False),
        ({"priority": 1024}, True),
        ({"priority": 512}, False),
    ],
)
def test_conditions(fields: dict[str, Any], matches: bool) -> None:
    """Every condition of a rule, all of which must hold."""
    route = Attributes(HERE, as_path=(Segment("sequence", (64500, 65010)),), communities=((64500, 7),))
    known = {"f": BGPFilterSpec(import_v4=(rule("Reject", **fields),))}
    verdict = judge(known, FABRIC, "import", BLOCK, route, learned=True, interface="eth0")
    assert verdict.action == ("Reject" if matches else "")
    assert (verdict.rule == "BGPFilter(f) import rule 0") == matches


def test_first_match_decides_and_none_falls_through() -> None:
    """Order of rules, then of filters; other families' and directions' rules do not count."""
    known = {
        "a": BGPFilterSpec(import_v4=(rule("Reject", cidr="10.0.0.0/8", match_operator="Equal"),)),
        "b": BGPFilterSpec(import_v4=(rule(cidr="10.244.0.0/16", match_operator="In"), rule("Reject"))),
        "c": BGPFilterSpec(export_v4=(rule("Reject"),), import_v6=(rule("Reject"),)),
    }
    both = session(4, filters=("a", "b"))
    assert judge(known, both, "import", BLOCK, Attributes(HERE), learned=True).rule == "BGPFilter(b) import rule 0"
    other = ip_network("192.0.2.0/24")
    assert judge(known, both, "import", other, Attributes(HERE), learned=True).action == "Reject"
    assert judge(known, session(4, filters=("c",)), "import", BLOCK, Attributes(HERE), learned=True).action == ""


@pytest.mark.parametrize(
    "spec",
    [None, BGPFilterSpec(import_v4=(rule(cidr="x", match_operator="In"),)),
     BGPFilterSpec(import_v4=(rule(cidr="10.0.0.0/8", match_operator="Nonsense"),)),
     BGPFilterSpec(import_v4=(rule(communities=CommunityMatch(values=("x",))),))],
)  # fmt: skip
def test_what_is_missing_or_broken_rejects(spec: BGPFilterSpec | None) -> None:
    """A filter that does not exist, or a rule that cannot be read, lets nothing through and says so."""
    verdict = judge({"f": spec} if spec else {}, INNER, "import", BLOCK, Attributes(HERE), learned=True)
    assert verdict.action == "Reject"
    assert "BGPFilter(f)" in verdict.rule


def test_sessions_whose_filters_do_not_exist() -> None:
    """They are named by the resource that asks for the filter: nothing passes them though all else is well."""
    assert missing({"f": BGPFilterSpec()}, [replace(INNER, filters=("f",))]) == {}
    found = missing({"f": BGPFilterSpec()}, [replace(INNER, filters=("f", "g"), source="BGPPeer(tor)")])
    assert list(found) == ["BGPPeer(tor)"]
    assert "BGPFilter(g) does not exist" in found["BGPPeer(tor)"]


def test_operations() -> None:
    """Communities are added, ASes prepended (ours stays first towards eBGP), priority becomes LOCAL_PREF."""
    operations = (
        FilterOperation(add_community=AddCommunity(value="64512:9")),
        FilterOperation(add_community=AddCommunity(value="64512:9:1")),
        FilterOperation(prepend_as_path=PrependASPath(prefix=(65001, 65002))),
        FilterOperation(set_priority=SetPriority(value=512)),
    )
    known = {"f": BGPFilterSpec(export_v4=(rule(operations=operations),), import_v4=(rule(operations=operations),))}
    out = judge(known, FABRIC, "export", BLOCK, Attributes(HERE), learned=False).attributes
    assert (out.communities, out.large_communities) == (((64512, 9),), ((64512, 9, 1),))
    assert out.as_path == (Segment("sequence", (64512, 65001, 65002)),)
    into = judge(known, INNER, "import", BLOCK, Attributes(HERE), learned=True).attributes
    assert into.as_path == (Segment("sequence", (65001, 65002)),)
    assert into.local_preference == 2147483647 - 512


def test_import_filters_come_after_loops_and_before_trust() -> None:
    """No filter lets a loop in; Accept lets a mesh peer tell what is in no pool; Reject keeps a pool's block out."""
    mesh = Session(INNER.peer, "node-to-node mesh", 64512, 64512, HERE, HERE, filters=("f",))
    accept = {"f": BGPFilterSpec(import_v4=(rule(),))}
    policy = ImportPolicy(sessions={mesh.peer: mesh}, router_id=HERE, filters=accept)
    peer = Peer(mesh.peer, 64512, 64512, IPv4Address(7))
    assert policy(peer, ip_network("192.0.2.0/24"), Attributes(mesh.peer))[0] == ""
    assert "own router ID" in policy(peer, BLOCK, Attributes(mesh.peer, originator_id=HERE))[0]
    refuse = ImportPolicy(
        sessions={mesh.peer: mesh},
        pools=Pools((ip_network("10.244.0.0/16"),)),
        filters={"f": BGPFilterSpec(import_v4=(rule("Reject"),))},
    )
    assert "BGPFilter(f)" in refuse(peer, BLOCK, Attributes(mesh.peer))[0]


def test_what_only_peers_of_ones_own_as_may_say() -> None:
    """LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST of an eBGP peer count for nothing; a filter's priority does."""
    other = Peer(OUTSIDE.peer, 64500, 64512, IPv4Address(7))
    path = (Segment("sequence", (64500,)),)
    foreign = {"originator_id": HERE, "cluster_list": (CLUSTER,)}
    said = Attributes(OUTSIDE.peer, as_path=path, local_preference=4294967295, **foreign)
    plain = ImportPolicy(sessions=EVERYBODY, router_id=HERE, cluster_id=CLUSTER)
    assert plain(other, BLOCK, said) == ("", Attributes(OUTSIDE.peer, as_path=path))
    inner = Attributes(PLAIN.peer, local_preference=7, originator_id=IPv4Address(9), cluster_list=(IPv4Address(8),))
    assert plain(INNER_PEER, BLOCK, inner)[1] == inner, "iBGP peers do say these"
    lifted = FilterOperation(set_priority=SetPriority(value=512))
    filtered = ImportPolicy(
        sessions={OUTSIDE.peer: replace(OUTSIDE, filters=("f",))},
        filters={"f": BGPFilterSpec(import_v4=(rule(operations=(lifted,), priority=1024),))},
    )
    assert filtered(other, BLOCK, said)[1].local_preference == 2147483647 - 512


def test_export_filters_open_and_close() -> None:
    """Reject keeps an own block home; Accept lets out what a pool hides, and passes on what was learned."""
    own, hidden = ip_network("10.244.1.0/26"), ip_network("10.99.1.0/26")
    spec = BGPFilterSpec(
        export_v4=(
            rule("Reject", cidr=str(own), match_operator="Equal"),
            rule(cidr="10.99.0.0/16", match_operator="In"),
            rule(source="RemotePeers"),
        )
    )
    policy = ExportPolicy(
        originated=Originated(blocks=frozenset({own}), hidden=frozenset({hidden})),
        sessions={FABRIC.peer: FABRIC, PLAIN.peer: PLAIN},
        filters={"f": spec},
    )
    told = exports(policy, learned(PLAIN))
    assert set(told[FABRIC.peer]) == {hidden, BLOCK}
    assert told[FABRIC.peer][BLOCK].as_path == (Segment("sequence", (64512,)),)
    assert set(told[PLAIN.peer]) == {own}


def test_local_preference_of_originated_routes_is_calicos() -> None:
    """A mixed cluster needs one mapping."""
    assert NORMAL_LOCAL_PREFERENCE == 2147482623
