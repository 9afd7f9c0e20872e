"""Changing a part of an object: patches, labels, names of policies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from calipy.cli.datastore import move_policies
from calipy.cli.edit import merged, patched
from calipy.cli.main import COMMANDS, calipy
from calipy.cli.session import Session
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.keys import ResourceKey, path
from calipy.datastore.memory import MemoryStore
from calipy.errors import InvalidInputError


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": "b"}, {"a": {"c": None, "d": 1}}, {"a": {"d": 1}}),
        ([1], {"a": 1}, {"a": 1}),
    ],
)
def test_merge(target: Any, change: Any, result: Any) -> None:
    """RFC 7396: objects merge, null removes, the rest replaces."""
    assert merged(target, change) == result


def stored(**extra: Any) -> Any:
    document = {
        "kind": "Node",
        "metadata": {"name": "n", "uid": "u", "creationTimestamp": "2026-08-01T10:00:00Z"},
        "spec": {"bgp": {"asNumber": 65001, "x-future": 1}, **extra},
    }
    return codec.decode_resource(ResourceKey("Node", "n"), json.dumps(document).encode(), 5)


def test_patch_keeps_what_nobody_knows() -> None:
    """Members of a newer release stay beside the change."""
    node = patched(stored(), {"spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}})
    assert codec.write_resource(node)["spec"]["bgp"] == {"asNumber": 65001, "ipv4Address": "10.0.0.1/24", "x-future": 1}
    assert node.revision == 5


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"name": "m"}},
        {"metadata": {"resourceVersion": "x"}},
        {"spec": {"wrong": 1}},
        {"spec": {"bgp": {"asNumber": 1.5}}},
        {"metadata": {"labels": []}},
        {"kind": "Tier"},
        {"apiVersion": "v1"},
    ],
)
def test_bad_patches_are_refused(change: dict[str, Any]) -> None:
    """No other name, no member that nobody knows, no wrong type."""
    with pytest.raises(InvalidInputError):
        patched(stored(), change)


def test_patches_are_read_like_files() -> None:
    """A number where a text belongs is that text; a revision must be the present one."""
    node = patched(stored(), {"metadata": {"labels": {"a": 1}, "resourceVersion": "7"}})
    assert (node.metadata.labels, node.revision) == ({"a": "1"}, 7)


class MemorySession(Session):
    """Commands on a store in memory."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def run(self, work: Callable[[Client], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await work(self.client)

        return asyncio.run(main())


def run(client: Client, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(calipy, list(arguments), input=stdin, obj=MemorySession(client))


def test_label_needs_overwrite_for_another_value() -> None:
    """A label is set, kept, changed on demand, and removed."""
    client = Client(MemoryStore())
    assert run(client, "apply", "-f", "-", stdin=json.dumps({**_NODE})).exit_code == 0
    assert run(client, "label", "node", "n", "rack=r1").exit_code == 0
    assert run(client, "label", "node", "n", "rack=r2").exit_code == 1
    assert run(client, "label", "node", "n", "rack=r2", "--overwrite").exit_code == 0
    shown = json.loads(run(client, "get", "node", "n", "-o", "json").stdout)
    assert shown["metadata"]["labels"] == {"rack": "r2"}
    assert run(client, "label", "node", "n", "rack", "--remove").exit_code == 0
    assert run(client, "label", "node", "n", "rack", "--remove").exit_code == 1


def test_kinds_of_patches() -> None:
    """Strategic and merge are one here; JSON patches are refused; what nobody knows is calicoctl's default, aloud."""
    client = Client(MemoryStore())
    run(client, "apply", "-f", "-", stdin=json.dumps(_NODE))
    for form in ("strategic", "merge"):
        assert run(client, "patch", "node", "n", "-t", form, "-p", "{}").exit_code == 0
    assert isinstance(run(client, "patch", "node", "n", "-t", "json", "-p", "{}").exception, InvalidInputError)
    unknown = run(client, "patch", "node", "n", "-t", "foo", "-p", "{}")
    assert (unknown.exit_code, "taken as strategic" in unknown.stderr) == (0, True)


_NODE = {"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n"}, "spec": {}}


def test_one_bad_document_does_not_stop_the_others() -> None:
    """Each failure is told on standard error; the exit code is 1."""
    client = Client(MemoryStore())
    pools = [
        {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr}}
        for name, cidr in (("a", "10.0.0.0/16"), ("b", "10.0.0.1/16"), ("c", "10.1.0.0/16"))
    ]
    result = run(client, "create", "-f", "-", stdin=json.dumps(pools))
    assert result.exit_code == 1
    assert "IPPool(b): spec.cidr = '10.0.0.1/16'" in result.stderr
    assert run(client, "get", "pools", "-o", "name").stdout.split() == ["a", "c"]


def test_a_table_lines_up() -> None:
    """Every cell starts below its heading."""
    client = Client(MemoryStore())
    run(client, "apply", "-f", "-", stdin=json.dumps({**_NODE, "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}}))
    head, row = run(client, "get", "nodes", "-o", "wide").stdout.splitlines()
    assert head.index("IPV4") == row.index("10.0.0.1/24")


def policy(name: str, uid: str) -> bytes:
    document = {"kind": "GlobalNetworkPolicy", "metadata": {"name": name, "uid": uid}, "spec": {"selector": "all()"}}
    return json.dumps(document).encode()


async def test_names_move_once_and_never_over_another_policy() -> None:
    """An interrupted migration is finished; a policy that already has the name is not taken for a copy."""
    store = MemoryStore()
    old, new = (path(ResourceKey("GlobalNetworkPolicy", name)) for name in ("default.p", "p"))
    await store.put(old, policy("default.p", "u1"))
    await store.put(new, policy("p", "u2"))
    await move_policies(Client(store))
    assert await store.get(old) is not None
    await store.put(new, policy("p", "u1"))
    await move_policies(Client(store))
    assert await store.get(old) is None
    assert await move_policies(Client(store)) == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    """What the overview lists can be imported and explains itself."""
    result = CliRunner().invoke(calipy, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
