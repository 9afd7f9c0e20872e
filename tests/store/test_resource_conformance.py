"""Recorded cases of the real command line, run by ours against a real etcd."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from calipy.conformance import steps, verdicts
from calipy.conformance.bench import Bench
from calipy.datastore.etcd import EtcdStore
from tests.support.etcd import EtcdServer

ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
RESOURCES = sorted((ROOT / "datastore" / "resources").glob("*.json"))
VALIDATION = sorted((ROOT / "datastore" / "validation").glob("*.json"))

pytestmark = [pytest.mark.etcd, pytest.mark.skipif(not RESOURCES, reason="no conformance data; set CALIPY_CONFORMANCE")]


@pytest.fixture
async def bench(etcd: EtcdServer) -> AsyncIterator[Bench]:
    """A bench on an empty etcd."""
    store = EtcdStore([etcd.url])
    bench = Bench(store)
    await bench.open()
    yield bench
    await bench.close()
    await store.close()


def load(file: Path) -> Any:
    return json.loads(file.read_text())


def failures(results: list[Any]) -> list[str]:
    return [f"{one.case}: {one.detail}" for one in results if one.outcome == "failed"]


@pytest.mark.parametrize("file", RESOURCES, ids=lambda file: file.stem)
async def test_resources(bench: Bench, file: Path) -> None:
    """Keys, values, order of writes and what is read back are Calico's."""
    assert failures(await steps.run(file.name, load(file), bench)) == []


@pytest.mark.parametrize("file", VALIDATION, ids=lambda file: file.stem)
async def test_validation(bench: Bench, file: Path) -> None:
    """Every document is accepted or refused as by Calico, and stored alike."""
    assert failures(await verdicts.run(file.name, load(file), bench)) == []


def _spoil(case: dict[str, Any], how: str) -> None:
    step = next(step for step in case["steps"] if step.get("writes"))
    match how:
        case "value":
            step["writes"][0]["value"]["spec"]["extra"] = 1
        case "order":
            step["writes"].append(step["writes"][0])
        case "exit":
            step["exit"] = 1
        case "was":
            step["writes"][0]["was"] = "present"
        case "output":
            get = next(step for step in case["steps"] if step["do"] == "get" and "kind" in step["output"])
            get["output"]["metadata"]["name"] = "other"
        case "store":
            case["steps"][-1]["store"] = {"/calico/x": {}}


@pytest.mark.parametrize("how", ["value", "order", "exit", "was", "output", "store"])
async def test_a_wrong_result_is_found(bench: Bench, how: str) -> None:
    """A case with a spoiled expectation fails, so passing means something."""
    file = next(file for file in RESOURCES if file.stem == "ippool")
    case = copy.deepcopy(load(file)["cases"][0])
    assert (await steps.run_case("f", case, bench)).outcome == "passed"
    _spoil(case, how)
    assert (await steps.run_case("f", case, bench)).outcome == "failed"
