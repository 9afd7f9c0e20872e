"""What the real node wrote at start, step by step, from ours: in a namespace of its own, against a real etcd."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from calipy.conformance import startup
from calipy.conformance.bench import Bench
from calipy.datastore.etcd import EtcdStore
from tests.support.etcd import EtcdServer

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
CASES = ROOT / "datastore" / "node-and-felix" / "startup.json"

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.kernel,
    pytest.mark.skipif(not CASES.exists(), reason="no conformance data; set CALIPY_CONFORMANCE"),
]


@pytest.fixture
async def bench(etcd: EtcdServer) -> AsyncIterator[Bench]:
    """A bench on an empty etcd."""
    store = EtcdStore([etcd.url])
    bench = Bench(store)
    await bench.open()
    yield bench
    await bench.close()
    await store.close()


async def test_a_starting_node_writes_what_the_real_one_writes(bench: Bench) -> None:
    """Keys, values and order of every recorded start; none is skipped."""
    results = await startup.run("startup.json", json.loads(CASES.read_text()), bench)
    assert results
    assert {r.case: r.detail for r in results if r.outcome != "passed"} == {}


async def test_a_wrong_expectation_is_noticed(bench: Bench) -> None:
    """The runner fails a case whose recorded write differs in one value."""
    document = json.loads(CASES.read_text())
    case = document["cases"][0]
    case["steps"][0]["writes"][4]["value"]["spec"]["bgp"]["ipv4Address"] = "192.0.2.1/24"
    (result,) = await startup.run("startup.json", {"cases": [case]}, bench)
    assert result.outcome == "failed"
    assert "nodes/gw-1" in result.detail
