"""What the graph has said: who has an interface, what is treated as absent, and what is not in force yet."""

from __future__ import annotations

from calipy.felix.known import Known
from calipy.felix.messages import Changes, EndpointID, WorkloadEndpoint

_PREFIXES = ("cali",)
_A, _B = EndpointID("k8s", "default/a", "eth0"), EndpointID("k8s", "default/b", "eth0")


def _endpoint(interface: str) -> WorkloadEndpoint:
    return WorkloadEndpoint(_A, interface, "", ("10.0.0.1/32",), (), ())


def _take(known: Known, changes: Changes) -> tuple[Changes, set[str]]:
    known.expect(changes)
    known.pending.popleft()
    return known.take(changes, _PREFIXES)


def test_the_first_by_name_has_an_interface_until_it_goes() -> None:
    """Two endpoints claim an interface: the order in which they came does not matter, and the second takes over."""
    known = Known()
    _take(known, Changes(endpoints={_B: _endpoint("cali1")}))
    assert known.holder("cali1") == _B
    _, touched = _take(known, Changes(endpoints={_A: _endpoint("cali1")}))
    assert (touched, known.holder("cali1")) == ({"cali1"}, _A)
    _take(known, Changes(endpoints={_A: None}))
    assert known.holder("cali1") == _B
    _take(known, Changes(endpoints={_B: None}))
    assert known.holder("cali1") is None


def test_an_endpoint_that_moves_touches_both_interfaces() -> None:
    """The old interface has no endpoint afterwards, the new one has."""
    known = Known()
    _take(known, Changes(endpoints={_A: _endpoint("cali1")}))
    _, touched = _take(known, Changes(endpoints={_A: _endpoint("cali2")}))
    assert touched == {"cali1", "cali2"}
    assert (known.holder("cali1"), known.holder("cali2")) == (None, _A)


def test_an_endpoint_on_an_interface_of_the_node_counts_as_absent() -> None:
    """It is carried out as a deletion, its reason is told, and both end when it is mended."""
    known = Known()
    _take(known, Changes(endpoints={_A: _endpoint("cali1")}))
    carried_out, touched = _take(known, Changes(endpoints={_A: _endpoint("eth0")}))
    assert carried_out.endpoints == {_A: None}
    assert touched == {"cali1"}
    assert "'eth0'" in known.unusable[_A]
    assert not known.sum().endpoints
    _take(known, Changes(endpoints={_A: _endpoint("cali1")}))
    assert not known.unusable
    assert known.sum().endpoints == {_A: _endpoint("cali1")}


def test_what_came_during_a_cycle_is_not_in_force_after_it() -> None:
    """Only what had been taken is applied; what waits stays so, of workload and host endpoints alike."""
    known = Known()
    _take(known, Changes(endpoints={_A: _endpoint("cali1")}, host_endpoints={"eth0": None}))
    assert (known.unapplied, known.unapplied_hosts) == ({_A}, {"eth0"})
    known.expect(Changes(endpoints={_B: _endpoint("cali2")}, host_endpoints={"eth1": None}))
    known.applied()
    assert (known.unapplied, known.unapplied_hosts) == ({_B}, {"eth1"})
