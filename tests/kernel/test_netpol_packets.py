"""The packet runner of network-policy cases: real agents, real packets, and eyes that see what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.netpol_random import make_case, policies_of
from tests.support.walking import mismatches

SEEDS = range(8)
POLICIES = 200
ROOT = Path(os.environ.get("CALIPY_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
REPRESENTATIVE = (
    "cal-endpoint-to-host-02",
    "cal-host-endpoint-05",
    "cal-pre-dnat-02",
    "cal-profiles-02",
    "cal-tiers-01",
    "cal-untracked-01",
    "k8s-dual-stack-01",
    "k8s-held-flow-01",
    "k8s-held-flow-02",
    "k8s-icmp-01",
    "k8s-pod-lifecycle-02",
    "k8s-sctp-01",
)
PROBES = ("tcp/8080", "udp/5353", "sctp/9899", "icmp/8", "tcp/8080+sport=30000", "tcp6/8080")
EVERYTHING_FROM_FRIEND = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "friends", "namespace": "shop"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
    },
}
OPEN = {"shop/web": "SAAA", "shop/friend": "ASAA", "shop/other": "AASA", "ext:alpha": "AAA-"}
FRIENDS = {"shop/web": "SAAA", "shop/friend": "ASAA", "shop/other": "DASA", "ext:alpha": "DAA-"}

pytestmark = [pytest.mark.kernel, pytest.mark.etcd, pytest.mark.xdist_group("netpol-packets"), pytest.mark.timeout(240)]


def pod(name: str, node: str, number: int) -> dict[str, Any]:
    network = node[1:]
    return {
        "namespace": "shop",
        "name": name,
        "node": node,
        "ip": f"10.65.{network}.{number}",
        "ip6": f"fd00:65:{network}::{number}",
        "labels": {"app": name},
    }


def state(table: dict[str, str]) -> dict[str, Any]:
    return {"endpoints": list(table), "tables": {probe: dict(table) for probe in PROBES}}


def case(name: str) -> dict[str, Any]:
    """Three pods on two nodes and an external; a policy comes, while the one it shuts out holds a connection open."""
    return {
        "format": "netpol-case/1",
        "id": name,
        "family": "kubernetes",
        "theme": "own",
        "nodes": [
            {"name": "n1", "ip": "172.20.0.11", "ip6": "fd00:20::11"},
            {"name": "n2", "ip": "172.20.0.12", "ip6": "fd00:20::12"},
        ],
        "namespaces": [{"name": "shop", "labels": {}}],
        "pods": [pod("web", "n1", 10), pod("friend", "n1", 11), pod("other", "n2", 10)],
        "externals": [{"name": "alpha", "ip": "192.0.2.10", "ip6": "2001:db8:2::10"}],
        "policies": [],
        "probes": list(PROBES),
        "expect": state(OPEN),
        "flows": [
            {"id": "held", "from": "shop/other", "to": "shop/web", "probe": "tcp/8080", "opened": 0, "alive": [1]}
        ],
        "steps": [{"name": "friends only", "actions": [{"apply": EVERYTHING_FROM_FRIEND}], "expect": state(FRIENDS)}],
    }


def run(directory: Path, *arguments: str | Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Results by case, and the report, of one run of the tool with packets."""
    out = directory / "results.json"
    command = [sys.executable, "-m", "calipy.conformance", *map(str, arguments), "--packets-only", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert out.exists(), done.stderr
    document = json.loads(out.read_text())
    assert done.returncode == (1 if document["failed"] else 0)
    return {result["case"]: result for result in document["cases"]}, done.stdout


def write(directory: Path, *documents: dict[str, Any]) -> None:
    for document in documents:
        (directory / f"{document['id']}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def test_packets_confirm_a_case_and_find_what_is_wrong_in_it(tmp_path: Path) -> None:
    """A right case passes; one wrong cell of either kind, and a connection that is dead, fail and are named."""
    right, hole, shut, dead = (case(name) for name in ("right", "hole", "shut", "dead"))
    hole["steps"][0]["expect"]["tables"]["udp/5353"]["shop/friend"] = "DSAA"
    shut["expect"]["tables"]["tcp/8080"]["ext:alpha"] = "DAA-"
    shut["steps"][0]["expect"]["tables"]["sctp/9899"]["shop/other"] = "AASA"
    dead["steps"][0]["actions"] = [{"deletePod": "shop/web"}]
    dead["steps"][0]["expect"] = {"endpoints": ["shop/other"], "tables": {"tcp/8080": {"shop/other": "S"}}}
    write(tmp_path, right, hole, shut, dead)
    results, text = run(tmp_path, tmp_path)
    assert results["right"]["outcome"] == "passed", results["right"]
    assert not results["right"]["notes"]
    assert results["hole"]["outcome"] == results["shut"]["outcome"] == results["dead"]["outcome"] == "failed"
    [only] = results["hole"]["detail"].splitlines()
    assert only.startswith("friends only: udp/5353 shop/friend -> shop/web: want D, answered, and again")
    first, second = results["shut"]["detail"].splitlines()
    assert first.startswith("start: tcp/8080 ext:alpha -> shop/web: want D, answered, and again")
    assert second.startswith("friends only: sctp/9899 shop/other -> shop/web: want A, no answer")
    assert "flow held is dead" in results["dead"]["detail"]
    assert "kubernetes/own (packets)   1        3        0" in text


def test_representative_cases_pass(tmp_path: Path) -> None:
    """Every kind of probe and of step: tiers, profiles, nodes, IPv6, SCTP, ICMP, held flows, an address that moves."""
    files = [path for name in REPRESENTATIVE for path in (ROOT / "netpol").glob(f"{name}-*.yaml")]
    if not files:
        pytest.skip("no conformance data; set CALIPY_CONFORMANCE")
    results, text = run(tmp_path, *files, "--backend", "nft")
    assert len(results) == len(REPRESENTATIVE)
    assert not [result["case"] for result in results.values() if result["outcome"] != "passed"], text


def test_packets_go_as_the_evaluator_says(tmp_path: Path) -> None:
    """Random policies for pods and nodes in three tiers, changed at random: every cell is as the evaluator has it."""
    write(tmp_path, *(make_case(seed, steps=2, hosts=seed % 2 == 1) for seed in SEEDS))
    results, text = run(tmp_path, tmp_path, "--backend", "legacy")
    assert [result["outcome"] for result in results.values()] == ["passed"] * len(SEEDS), text


def test_evaluator_walk_and_packets_agree(tmp_path: Path) -> None:
    """200 random policies of every kind: what the evaluator says is what rendered chains say and what packets do."""
    cases: list[dict[str, Any]] = []
    while sum(map(policies_of, cases)) < POLICIES:
        number = len(cases)
        cases.append(make_case(2_000_000 + number, steps=0, hosts=number % 2 == 1, policies=(8, 12), probes=3))
        assert not list(mismatches(cases[-1])), f"seed {2_000_000 + number}"
    write(tmp_path, *cases)
    results, text = run(tmp_path, tmp_path, "--backend", "nft")
    assert [result["outcome"] for result in results.values()] == ["passed"] * len(cases), text
