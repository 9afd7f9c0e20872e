"""Statuses in the datastore follow the endpoints, and the heartbeat has a lease."""

from __future__ import annotations

import datetime
import json

import pytest

from calipy.datastore.etcd import EtcdStore
from calipy.datastore.store import Store
from calipy.felix.messages import EndpointID
from calipy.felix.status_reports import Heartbeat, StatusReports, desired, report_alive
from tests.support.etcd import EtcdServer

WEB = EndpointID("k8s", "default/web", "eth0")
WEB_PATH = "/calico/felix/v2/no-region/host/n1/workload/k8s/default%2fweb/endpoint/eth0"
HOST_PATH = "/calico/felix/v1/host/n1/endpoint/eth0"


async def _everything(store: Store) -> dict[str, bytes]:
    return {item.key: item.value for item in (await store.list("/")).items}


def test_keys_and_values_are_felixs() -> None:
    """Workload and host endpoints have their own trees."""
    assert desired("n1", "no-region", {WEB: "up"}, {"eth0": "error"}) == {
        WEB_PATH: b'{"status":"up"}',
        HOST_PATH: b'{"status":"error"}',
    }


async def test_statuses_follow(store: Store) -> None:
    """They come, change and go; nothing is written that is right."""
    reports = StatusReports(store, "n1", region="no-region")
    assert not await reports.write(desired("n1", "no-region", {WEB: "down"}, {"eth0": "up"}))
    assert await _everything(store) == {WEB_PATH: b'{"status":"down"}', HOST_PATH: b'{"status":"up"}'}
    revision = (await store.list("/")).revision
    await reports.write(desired("n1", "no-region", {WEB: "down"}, {"eth0": "up"}))
    assert (await store.list("/")).revision == revision
    await reports.write(desired("n1", "no-region", {WEB: "up"}, {}))
    assert await _everything(store) == {WEB_PATH: b'{"status":"up"}'}


async def test_stale_and_changed_ones_are_put_right(store: Store) -> None:
    """What an earlier run left, or somebody else did, is noticed at the start and at a recheck; others' keys stay."""
    stale = "/calico/felix/v2/no-region/host/n1/workload/k8s/default%2fold/endpoint/eth0"
    others = "/calico/felix/v2/no-region/host/n10/workload/k8s/default%2fold/endpoint/eth0"
    for path in (stale, others, "/calico/felix/v1/host/n1/endpoint/gone"):
        await store.put(path, b'{"status":"up"}')
    reports = StatusReports(store, "n1", region="no-region")
    wanted = desired("n1", "no-region", {WEB: "up"}, {})
    await reports.write(wanted)
    assert (await _everything(store)).keys() == {WEB_PATH, others}
    await store.put(WEB_PATH, b"nonsense")
    await store.put(stale, b'{"status":"up"}')
    reports.recheck()
    await reports.write(wanted)
    assert await _everything(store) == {WEB_PATH: b'{"status":"up"}', others: b'{"status":"up"}'}


async def test_many_take_several_writes(store: Store) -> None:
    """At most 100 keys a write; the caller learns that there is more."""
    endpoints = {EndpointID("k8s", f"default/p{number}", "eth0"): "up" for number in range(150)}
    reports = StatusReports(store, "n1", region="no-region")
    assert await reports.write(desired("n1", "no-region", endpoints, {}))
    assert len(await _everything(store)) == 100
    assert not await reports.write(desired("n1", "no-region", endpoints, {}))
    assert len(await _everything(store)) == 150
    assert await reports.write({})
    assert not await reports.write({})
    assert not await _everything(store)


@pytest.mark.etcd
async def test_the_heartbeat_expires(etcd: EtcdServer) -> None:
    """One report lives as long as its lease, a new one each time; the other stays."""
    store = EtcdStore([etcd.url])
    now = datetime.datetime(2026, 8, 1, 10, tzinfo=datetime.UTC)
    status, last = (f"/calico/felix/v2/region-eu/host/n1/{name}" for name in ("status", "last_reported_status"))
    leases = []
    for first in (True, False):
        await report_alive(store, "n1", Heartbeat(now, 12.5, first), region="region-eu", ttl=90)
        found = await store.get(status)
        assert found is not None
        assert json.loads(found.value) == {"time": "2026-08-01T10:00:00Z", "uptime": 12.5, "first_update": first}
        kept = await store.get(last)
        assert kept is not None
        assert kept.value == found.value
        assert kept.lease == 0
        leases.append(found.lease)
    assert leases[0] != leases[1]
    assert all(leases)
    await store.close()
