"""Cases made of steps of the command line: documents in, etcd events and output out (``resources/*.json``)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from calipy.cli import ipam
from calipy.conformance.bench import START_KEYS, Bench, Outcome, parsed
from calipy.conformance.report import CaseResult
from calipy.conformance.volatile import Matcher, Mismatch
from calipy.datastore.keys import NAMESPACED, ResourceKey, path
from calipy.datastore.resources import KINDS
from calipy.datastore.store import Delete, Event
from calipy.ipam.allocator import CALICO_DEFAULTS

FILE_VERBS: Final = frozenset({"create", "apply", "replace", "delete"})
OTHER_VERBS: Final = frozenset({"get", "label", "patch", "calicoctl", "etcd-put", "etcd-delete", "wait"})
COMMANDS: Final = frozenset({
    ("get",), ("create",), ("apply",), ("replace",), ("delete",), ("label",), ("patch",),
    ("datastore", "migrate", "lock"), ("datastore", "migrate", "unlock"), ("datastore", "migrate-policy-names"),
    ("ipam",),
})  # fmt: skip
"""Commands of calicoctl that ``calipy`` has under the same name."""


def detect(_path: Path, document: Any) -> bool:
    """A JSON file of cases, of which at least one does something to resources."""
    cases = document.get("cases") if isinstance(document, dict) else None
    if not isinstance(cases, list) or not cases:
        return False
    return all(
        isinstance(case, dict)
        and case.get("steps")
        and {step.get("do") for step in case["steps"]} <= FILE_VERBS | OTHER_VERBS
        for case in cases
    )


async def run(name: str, document: Any, bench: Bench) -> list[CaseResult]:
    """Run all cases of a file."""
    return [await run_case(name, case, bench) for case in document["cases"]]


async def run_case(name: str, case: dict[str, Any], bench: Bench) -> CaseResult:
    """Run one case on an emptied store."""
    themes = tuple(case.get("themes") or ([case["theme"]] if case.get("theme") else []))
    missing = sorted({reason for step in case["steps"] if (reason := _unsupported(step))})
    if missing:
        return CaseResult(name, case["id"], "skipped", themes, ", ".join(missing))
    matcher = Matcher()
    skipped: list[str] = []
    await bench.reset(empty=case.get("start") == "empty")
    try:
        for document in case.get("setup", ()):
            await _setup(document, bench)
        for number, step in enumerate(case["steps"], 1):
            try:
                await _Step(step, bench, matcher, skipped).run(empty_start=case.get("start") == "empty")
            except Mismatch as difference:
                what = " ".join([step["do"], *map(str, step.get("args", ()))])
                return CaseResult(
                    name, case["id"], "failed", themes, f"step {number}: {what}\n{difference}", tuple(skipped)
                )
    except Mismatch as difference:
        return CaseResult(name, case["id"], "failed", themes, str(difference), tuple(skipped))
    return CaseResult(name, case["id"], "passed", themes, "", tuple(skipped))


def _unsupported(step: dict[str, Any]) -> str:
    """Why a case with this step cannot be run; "" if it can."""
    words = [word for word in step.get("args", ()) if not str(word).startswith("-")]
    if step["do"] != "calicoctl" or any(tuple(words[: len(command)]) == command for command in COMMANDS):
        return ""
    return f"calicoctl {' '.join(words[:2])}"


async def _setup(document: Any, bench: Bench) -> None:
    outcome = await bench.command(["create", "-f", "-"], json.dumps(document))
    if outcome.exit_code:
        raise Mismatch(f"setup is refused: {outcome.error}")
    await bench.take_events()


class _Step:
    """One step and its checks."""

    def __init__(self, step: dict[str, Any], bench: Bench, matcher: Matcher, skipped: list[str]) -> None:
        self.step = step
        self.bench = bench
        self.matcher = matcher
        self.skipped = skipped

    async def run(self, *, empty_start: bool) -> None:
        step = self.step
        match step["do"]:
            case "etcd-put":
                value = step["text"] if "text" in step else json.dumps(self.matcher.fill(step["value"]))
                await self.bench.store.put(step["key"], value.encode())
                await self.bench.take_events()
                return
            case "etcd-delete":
                await self.bench.store.txn([], [Delete(step["key"])])
                await self.bench.take_events()
                return
            case "wait":
                return
            case "get":
                outcome = await self._get(["get", *step.get("args", ())])
            case "label" | "patch" as verb:
                outcome = await self.bench.command([verb, *step["args"]])
            case "calicoctl" if step["args"][0] == "ipam":
                outcome = await self._ipam(step["args"][1:])
            case "calicoctl":
                outcome = await self.bench.command(step["args"])
            case verb:
                outcome = await self._file(verb)
        if outcome is None:
            return
        self._check_exit(outcome)
        events = await self.bench.take_events()
        if "writes" in step:
            self._check_writes(step["writes"], events)
        if "store" in step:
            await self._check_store(step["store"], everything=empty_start)

    def _check_exit(self, outcome: Outcome) -> None:
        if bool(outcome.exit_code) == bool(self.step.get("exit", 0)):
            return
        if outcome.exit_code:
            raise Mismatch(f"expected success, got exit {outcome.exit_code}: {outcome.error.strip()}")
        reason = self.step.get("reason", "")
        raise Mismatch(
            f"expected a refusal{f' ({reason})' if reason else ''}, got success: {outcome.output.strip()[:300]}"
        )

    async def _file(self, verb: str) -> Outcome:
        arguments = [verb, *map(str, self.step.get("args", ()))]
        if "input" not in self.step:
            return await self.bench.command(arguments)
        document = await self._with_revisions(self.matcher.fill(self.step["input"]))
        if isinstance(document, str):
            text = document
        else:
            text = "\n---\n".join(
                json.dumps(one, ensure_ascii=False) for one in (document if isinstance(document, list) else [document])
            )
        return await self.bench.command([*arguments, "-f", "-"], text)

    async def _with_revisions(self, document: Any) -> Any:
        """``<modrev>`` in a file stands for the present revision of the object."""
        if isinstance(document, list):
            return [await self._with_revisions(one) for one in document]
        if not isinstance(document, dict) or document.get("metadata", {}).get("resourceVersion") != "<modrev>":
            return document
        kind, metadata = document["kind"], document["metadata"]
        namespace = metadata.get("namespace", "default") if kind in NAMESPACED else ""
        found = await self.bench.store.get(path(ResourceKey(kind, metadata["name"], namespace)))
        revision = str(found.mod_revision) if found else "0"
        return {**document, "metadata": {**metadata, "resourceVersion": revision}}

    async def _get(self, arguments: Sequence[str]) -> Outcome | None:
        """Run ``get`` and compare its output; None if its format is not supported."""
        step = self.step
        form = next((word for word in arguments if word.startswith("go-template")), "")
        if form:
            self.skipped.append("get -o go-template")
            return None
        outcome = await self.bench.command(arguments)
        expected = step.get("output")
        if outcome.exit_code or expected is None:
            return outcome
        if isinstance(expected, dict) and set(expected) == {"columns", "rows"}:
            self._check_table(expected, outcome.output)
            return outcome
        try:
            actual = json.loads(outcome.output)
        except ValueError:
            raise Mismatch(f"output is not JSON: {outcome.output[:300]!r}") from None
        await self._check_revisions(actual)
        self.matcher.check(expected, actual, "output")
        if step.get("yaml_same"):
            as_yaml = await self.bench.command(["yaml" if word == "json" else word for word in arguments])
            if yaml.load(as_yaml.output, yaml.CSafeLoader) != actual:
                raise Mismatch(f"-o yaml differs from -o json: {as_yaml.output[:300]!r}")
        return outcome

    async def _ipam(self, arguments: Sequence[str]) -> Outcome:
        """Run ``calipy ipam`` with Calico's settings for a store without any, and compare its table."""
        place = ipam.Place(self.bench.store, defaults=CALICO_DEFAULTS, settle=0)
        output = await ipam.invoke(place, arguments)
        if "output" in self.step and not output.exit_code:
            expected = self.step["output"]
            self.matcher.check(expected["columns"], list(output.columns), "columns")
            # Where the real tool prints an address in memory, any text will do.
            rows = [
                ["<pointer>" if "<pointer>" in wanted else cell for cell, wanted in zip(row, words, strict=False)]
                for row, words in zip(output.rows, expected["rows"], strict=False)
            ]
            self.matcher.check(expected["rows"], rows + [list(r) for r in output.rows[len(rows) :]], "rows")
        return Outcome(output.exit_code, output.text, output.text if output.exit_code else "")

    async def _check_revisions(self, output: Any) -> None:
        """A shown ``resourceVersion`` is the mod revision of its key."""
        stored = await self.bench.stored()
        for item in _objects(output):
            metadata = item["metadata"]
            namespace = metadata.get("namespace", "default") if item["kind"] in NAMESPACED else ""
            found = stored.get(path(ResourceKey(item["kind"], metadata["name"], namespace)))
            if found is not None and "resourceVersion" in metadata:
                self.matcher.check(
                    str(found.mod_revision), metadata["resourceVersion"], f"resourceVersion of {found.key}"
                )

    def _check_table(self, expected: dict[str, Any], output: str) -> None:
        lines = output.splitlines()
        starts = [found.start() for found in re.finditer(r"\S+", lines[0])] if lines else []
        cells = [
            [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines
        ]
        self.matcher.check(expected["columns"], cells[0] if cells else [], "columns")
        rows = [[_GUID.sub("<guid>", cell) for cell in row] for row in expected["rows"]]
        self.matcher.check(rows, cells[1:], "rows")

    def _check_writes(self, expected: list[dict[str, Any]], events: list[Event]) -> None:
        actual = [recorded(event) for event in events]
        keys = [(one["op"], one["key"]) for one in actual]
        wanted = [(one["op"], one["key"]) for one in expected]
        if keys != wanted:
            raise Mismatch(f"writes: expected {_listed(wanted)}, got {_listed(keys)}")
        for number, (left, right) in enumerate(zip(expected, actual, strict=True)):
            compared = {name: value for name, value in left.items() if name in {"op", "key", "was", "value", "text"}}
            self.matcher.check(compared, {name: right.get(name) for name in compared}, f"writes[{number}]")

    async def _check_store(self, expected: dict[str, Any], *, everything: bool) -> None:
        stored = await self.bench.stored()
        actual = {key: parsed(item.value) for key, item in stored.items() if everything or key not in START_KEYS}
        self.matcher.check(expected, actual, "store")


_GUID: Final = re.compile(r"\b[0-9a-f]{32}\b")
"""Tables show the GUID of the recorded run."""


def _objects(output: Any) -> list[dict[str, Any]]:
    if isinstance(output, list):
        return [item for one in output for item in _objects(one)]
    if isinstance(output, dict) and output.get("kind") in KINDS:
        return [output]
    return _objects(output["items"]) if isinstance(output, dict) and "items" in output else []


def recorded(event: Event) -> dict[str, Any]:
    """An event in the form in which cases record it."""
    if event.kv is None:
        return {"op": "delete", "key": event.key}
    was = "absent" if event.kv.version == 1 else "present"
    return {"op": "put", "key": event.key, "was": was, "value": parsed(event.kv.value)}


def _listed(writes: Sequence[tuple[str, str]]) -> str:
    return "[" + ", ".join(f"{op} {key.removeprefix('/calico/')}" for op, key in writes) + "]"
