"""Decoding and encoding of resources: Go's rules on the way in, everything kept on the way out."""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from calipy.datastore import codec, defaults, gojson, validation
from calipy.datastore.keys import ResourceKey
from calipy.datastore.kinds.base import Bits, Form, GoStruct
from calipy.datastore.kinds.policy import TierSpec
from calipy.datastore.policynames import ANNOTATION, NAMED_POLICIES
from calipy.datastore.resources import KINDS
from calipy.errors import InvalidInputError, UndecodableError

PLAUSIBLE = [
    "", "Allow", "Accept", "In", "Ingress", "Never", "Always", "Workload", "LoadBalancer", "Delete", "all()",
    "a == 'b'", "global()", "10.0.0.0/8", "10.0.0.1", "10.0.0.1/33", "fd00::/64", "fd00::1", "::ffff:1.2.3.4", "1:2",
    "1:2:3", "eth0", "node-1", "k8s", "aa:bb:cc:dd:ee:ff", "a/b", "10.0.0.1:179", "[fd00::1]:1", "[", "Bad Name",
]  # fmt: skip
texts = st.one_of(st.sampled_from(PLAUSIBLE), st.text(max_size=8))
FORMS: dict[str, st.SearchStrategy[Any]] = {
    "time": st.just("2026-08-01T10:00:00Z"),
    "duration": st.sampled_from(["0s", "500ms", "1m30s", "1h0m0s", "1.5s"]),
    "as": st.integers(0, 2**32 - 1),
    "port": st.one_of(st.integers(0, 65535), st.sampled_from(["http", "1:2"])),
    "protocol": st.one_of(st.integers(0, 255), st.sampled_from(["TCP", "weird"])),
}


def values(base: Any, marks: tuple[Any, ...], depth: int) -> st.SearchStrategy[Any]:
    """JSON that Calico would write for a type."""
    form = next((mark for mark in marks if isinstance(mark, Form)), None)
    if form is not None:
        return FORMS[form.name]
    if base is bool:
        return st.booleans()
    if base is str:
        return texts
    if base is float:
        return st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6).filter(lambda x: not x.is_integer()))
    if base is int:
        bits = next((mark for mark in marks if isinstance(mark, Bits)), Bits(-(2**63), 2**63 - 1))
        return st.integers(bits.low, bits.high)
    origin = typing.get_origin(base)
    if origin is tuple:
        item, item_marks, _ = gojson.unwrap(typing.get_args(base)[0])
        return st.lists(values(item, item_marks, depth + 1), max_size=2)
    if origin is dict:
        return st.dictionaries(texts, values(typing.get_args(base)[1], (), depth + 1), max_size=2)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of(st.integers(0, 100), texts)
    if isinstance(base, type) and issubclass(base, GoStruct):
        return objects(base, depth + 1)
    return st.one_of(st.integers(0, 9), texts)


@st.composite
def objects(draw: st.DrawFn, struct: type[GoStruct], depth: int = 0) -> dict[str, Any]:
    """A JSON object of a struct, sometimes with members that nobody knows."""
    members = gojson.members(struct)
    chosen = (
        draw(st.lists(st.sampled_from(members), max_size=4, unique_by=lambda member: member.name))
        if members and depth < 5
        else []
    )
    found = {member.name: draw(values(member.type, member.marks, depth)) for member in chosen}
    if draw(st.booleans()):
        found["x-" + draw(st.sampled_from(["future", "n", "1"]))] = draw(
            st.one_of(st.none(), texts, st.just({"a": [1]}))
        )
    return found


@st.composite
def documents(draw: st.DrawFn) -> tuple[ResourceKey, dict[str, Any]]:
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    namespace = "ns" if kind.namespaced else ""
    metadata = {"name": "one", "labels": {"a": "b"}} | ({"namespace": namespace} if namespace else {})
    document = {"kind": kind.name, "apiVersion": "projectcalico.org/v3", "metadata": metadata}
    document["spec"] = draw(objects(kind.spec))
    if draw(st.booleans()):
        document["x-top"] = draw(texts)
    return ResourceKey(kind.name, "one", namespace), document


def unknown_of(document: Any, path: str = "") -> dict[str, Any]:
    """All ``x-`` members of a document, by path."""
    found = {}
    if isinstance(document, dict):
        for name, item in document.items():
            if name.startswith("x-"):
                found[f"{path}.{name}"] = item
            else:
                found |= unknown_of(item, f"{path}.{name}")
    elif isinstance(document, list):
        for index, item in enumerate(document):
            found |= unknown_of(item, f"{path}[{index}]")
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(documents())
def test_unknown_members_survive_a_change(given_document: tuple[ResourceKey, dict[str, Any]]) -> None:
    """Whatever this release does not know is still there after decode, change, encode."""
    key, document = given_document
    resource = codec.decode_resource(key, json.dumps(document).encode(), 7)
    changed = replace(resource, metadata=replace(resource.metadata, labels={"c": "d"}))
    written = json.loads(codec.encode(changed))
    assert written["metadata"]["labels"] == {"c": "d"}
    assert unknown_of(written) == unknown_of(document)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(documents())
def test_encoding_is_stable(given_document: tuple[ResourceKey, dict[str, Any]]) -> None:
    """What was written reads as the same value, by either way of reading, and is written the same again."""
    key, document = given_document
    first = codec.decode_resource(key, json.dumps(document).encode(), 7)
    written = codec.encode(first)
    again = codec.decode_resource(key, written, 7)
    assert json.loads(codec.encode(again)) == json.loads(written)
    careful = gojson.read(KINDS[key.kind].resource, json.loads(written))
    if key.kind not in NAMED_POLICIES:
        assert replace(careful, revision=7) == again


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(documents())
def test_nothing_but_a_clear_error(given_document: tuple[ResourceKey, dict[str, Any]]) -> None:
    """Whatever stands in a document, it is accepted, and stable then, or refused by the name of a field."""
    key, document = given_document
    resource = codec.decode_resource(key, json.dumps(document).encode(), 7)
    refused = ""
    try:
        filled = defaults.fill(resource)
        validation.check(filled)
    except InvalidInputError as error:
        refused = error.field
    assert refused or defaults.fill(filled) == filled


KEY = ResourceKey("GlobalNetworkPolicy", "p")


def decode(spec: str, key: ResourceKey = KEY) -> Any:
    text = (
        f'{{"kind":"{key.kind}","apiVersion":"projectcalico.org/v3","metadata":{{"name":"{key.name}"}},"spec":{spec}}}'
    )
    return codec.decode_resource(key, text.encode(), 1).spec


def test_names_match_in_any_case() -> None:
    """Go takes ``ORDER`` for ``order``."""
    assert decode('{"ORDER": 10, "ingress": [{"ACTION": "Deny"}]}').ingress[0].action == "Deny"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ('{"order": "10"}', "spec.order"),
        ('{"ingress": [{"destination": {"ports": [80.0]}}]}', r"spec.ingress\[0\].destination.ports\[0\]"),
        ('{"ingress": [{"destination": {"ports": ["2:1"]}}]}', r"spec.ingress\[0\].destination.ports\[0\]"),
        ('{"ingress": {}}', "spec.ingress"),
        ('{"doNotTrack": 1}', "spec.doNotTrack"),
    ],
)
def test_what_go_cannot_read_is_undecodable(spec: str, field: str) -> None:
    """The error names the key and the field."""
    with pytest.raises(UndecodableError, match=f"globalnetworkpolicies/p: {field}") as caught:
        decode(spec)
    assert re.fullmatch(field, caught.value.field)


def test_bottomless_nesting_is_undecodable() -> None:
    """A value that would exhaust the stack is reported like any other that cannot be read."""
    for spec in ('{"a":' * 100_000 + "1" + "}" * 100_000, '{"ingress":' + "[" * 100_000 + "]" * 100_000 + "}"):
        with pytest.raises(UndecodableError):
            decode(spec)


def test_other_spellings_are_read_into_one() -> None:
    """AS numbers as texts, ports and durations in other spellings."""
    assert decode('{"asNumber": "1.10"}', ResourceKey("BGPConfiguration", "default")).as_number == 65546
    assert decode('{"ingress": [{"source": {"ports": ["80", "7:7"]}, "protocol": "6"}]}').ingress[0].source.ports == (
        80,
        7,
    )
    felix = decode('{"routeRefreshInterval": "90s"}', ResourceKey("FelixConfiguration", "default"))
    assert felix.route_refresh_interval == "1m30s"


def test_null_is_absent() -> None:
    """Go's nil slices and maps arrive as null."""
    assert decode('{"ingress": null, "order": null, "types": null}') == decode("{}")


@pytest.mark.parametrize("time", ["2026-02-03T04:05:06", "2026-02-03 04:05:06Z", "2026-02-31T04:05:06Z", "now"])
def test_bad_times_are_undecodable(time: str) -> None:
    """A time needs its zone and its T, and must exist."""
    text = f'{{"kind":"Tier","metadata":{{"name":"t","creationTimestamp":"{time}"}},"spec":{{}}}}'
    with pytest.raises(UndecodableError, match=r"metadata\.creationTimestamp"):
        codec.decode_resource(ResourceKey("Tier", "t"), text.encode(), 1)


def test_times_are_kept_in_utc_and_whole_seconds() -> None:
    """Offsets and fractions are read, and gone when written."""
    text = '{"kind":"Tier","metadata":{"name":"t","creationTimestamp":"2026-02-03T04:05:06.9+02:00"},"spec":{}}'
    tier = codec.decode_resource(ResourceKey("Tier", "t"), text.encode(), 1)
    assert tier.metadata.creation_timestamp == "2026-02-03T02:05:06Z"


def test_policy_name_travels_in_the_annotation() -> None:
    """The annotation names a policy; it is hidden from readers and written again with the present name."""
    text = json.dumps(
        {
            "kind": "GlobalNetworkPolicy",
            "apiVersion": "projectcalico.org/v3",
            "metadata": {"name": "default.p", "annotations": {ANNOTATION: '{"name":"p"}', "a": "b"}},
            "spec": {},
        }
    )
    policy = codec.decode_resource(KEY, text.encode(), 1)
    assert (policy.metadata.name, policy.metadata.annotations) == ("p", {"a": "b"})
    assert json.loads(codec.encode(policy))["metadata"]["annotations"][ANNOTATION] == '{"name":"p"}'


def test_whole_floats_are_written_as_go_prints_them() -> None:
    """As many digits as tell the number apart, then zeros."""
    tier = codec.new("Tier", "one", TierSpec(order=2.0**63))
    assert b'"order":9223372036854776000' in codec.encode(tier)


def test_large_integers_stay_exact() -> None:
    """Nothing passes through a float."""
    assert (
        decode('{"iptablesMarkMask": 4294967295}', ResourceKey("FelixConfiguration", "x")).iptables_mark_mask
        == 2**32 - 1
    )
