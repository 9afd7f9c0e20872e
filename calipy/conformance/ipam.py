"""Runs cases of the datastore collection about address management.

A case is a script: each step is done with calipy's allocator on a store in memory, and the outcome, every state of the
IPAM keys in between, and the state afterwards are compared with what Calico's library did.

* Which free block a host takes first is each implementation's own choice. The allocator is therefore told Calico's
  choice (the first block it claimed in that pool); from there on the search has to go the same way.
* calipy joins in one transaction what Calico writes in several steps. So the states calipy leaves must appear, in
  order, among those Calico passed through, and the last ones must be equal.
* Calico counts in a handle the addresses *asked for*, calipy those assigned. A handle is an upper bound for both:
  both are compared by what is really assigned, and calipy's may count neither less than that nor more than Calico's.
* Steps marked ``nondeterministic`` are checked by invariants.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import ipaddress
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from calipy.cli import ipam as commands
from calipy.conformance.ipam_states import (
    IPAM,
    JSON,
    Bindings,
    State,
    canonical,
    first_difference,
    invariants,
    undercounts,
)
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.ipam import IPAMConfig
from calipy.datastore.keys import BlockAffinityKey, parse
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Delete
from calipy.errors import CalipyError
from calipy.ipam import errors, report, snapshot
from calipy.ipam.allocator import CALICO_DEFAULTS, Allocator
from calipy.ipam.pools import Pool, start_index
from calipy.ipam.request import Assignment, FamilyAssignment, ReleaseRequest

ERRORS: Mapping[type[CalipyError], str] = {
    errors.UnknownNodeError: "missing",
    errors.UnknownPoolError: "unknown-pool",
    errors.NoPoolError: "no-pool",
    errors.WrongUseError: "wrong-use",
    errors.BlockLimitError: "block-limit",
    errors.NoBlockError: "no-block",
    errors.AddressNotInPoolError: "not-in-pool",
    errors.AddressTakenError: "address-taken",
    errors.ForeignBlockError: "foreign-block",
    errors.TooSmallError: "too-small",
    errors.ClaimConflictError: "conflict",
    errors.BlockNotEmptyError: "block-not-empty",
    errors.ReleaseConflictError: "conflict",
    errors.HandleNotFoundError: "missing",
    errors.NotAllocatedError: "missing",
    errors.RefusedConfigError: "refused-config",
}
"""calipy's errors in the words of the collection; classes are compared loosely, success and failure strictly."""


def applies(case: Mapping[str, Any]) -> bool:
    """Whether a case is about address management: it calls the library, or ``calicoctl ipam``."""
    steps = case.get("steps")
    return isinstance(steps, list) and any(
        step.get("do") in {*Runner.BY_NAME, "parallel", "ipam-check"}
        or (step.get("do") == "calicoctl" and step.get("args", [""])[0] == "ipam")
        for step in steps
    )


def run(case: Mapping[str, Any]) -> list[str]:
    """Run one case; what differs, in words, empty if it passes. Blocks."""
    return asyncio.run(Runner(case).run())


@dataclass
class Clock:
    """Time of a case: moves on by itself a little with each look, and by ``wait`` steps."""

    moment: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    ticks: int = 0

    def now(self) -> datetime.datetime:
        """Wall clock."""
        return self.moment

    def nanoseconds(self) -> int:
        """Wall clock in nanoseconds, never the same twice."""
        self.ticks += 1
        return int(self.moment.timestamp()) * 1_000_000_000 + self.ticks

    def forward(self, seconds: float) -> None:
        """A ``wait`` step."""
        self.moment += datetime.timedelta(seconds=seconds)


class Runner:
    """One case on a store of its own."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        self.case = case
        self.clock = Clock()
        self.store = MemoryStore()
        self.client = Client(self.store, addresses=self.allocator("nobody"), now=self.clock.now, settle=0)
        self.bindings = Bindings()
        self.differences: list[str] = []
        self.expected: State = {}
        self.orderly = True
        self._first_choice, self._choices = learn_choices(case)

    async def run(self) -> list[str]:
        """All steps; stops at the first that differs, since the rest would only repeat it."""
        await self.client.ensure_initialised()
        for document in self.case.get("setup", []):
            await self.client.create(codec.read_document(document, document["kind"]))
        self.expected = await self._state()
        for number, step in enumerate(self.case["steps"]):
            where = f"step {number} ({step['do']})"
            before = await self._revision()
            try:
                found = await self.CALLS[step["do"]](self, step)
            except KeyError:
                self.differences.append(f"{where}: unknown call")
                return self.differences
            self.differences += [f"{where}: {text}" for text in found]
            self.differences += [f"{where}: {text}" for text in await self._compare_states(step, before)]
            if self.differences:
                break
        return self.differences

    # Calls

    def allocator(self, host: str, *, use: str = "") -> Allocator:
        """An allocator as Calico's client would act for this host."""
        return Allocator(
            self.store,
            host,
            virtual=use == "LoadBalancer",
            defaults=CALICO_DEFAULTS,
            start=self._start,
            now=self.clock.now,
            nanoseconds=self.clock.nanoseconds,
        )

    def _start(self, owner: str, pool: Pool) -> int:
        single = pool.block_size == pool.network.max_prefixlen
        choices = self._choices.get((owner, str(pool.network)), [])
        if single and choices:
            return _index(pool, choices.pop(0))
        first = self._first_choice.get((owner, str(pool.network)))
        if first is not None:
            return _index(pool, first)
        return start_index(owner, pool.block_count, single_addresses=single, nanoseconds=self.clock.nanoseconds())

    async def _auto(self, args: Mapping[str, Any]) -> JSON:
        use = args.get("use", "")
        call = self.allocator(args["host"], use=use).auto_assign(
            num4=args.get("num4", 0),
            num6=args.get("num6", 0),
            handle_id=args.get("handle"),
            attributes=args.get("attrs"),
            pools4=args.get("pools4"),
            pools6=args.get("pools6"),
            intended_use=use,
            namespace=args.get("ns"),
            namespace_labels=args.get("nsLabels"),
            max_blocks=args.get("maxBlocks", 0),
        )
        try:
            return _assignment(await call, args)
        except errors.IPAMError as error:
            return {**_assignment(error.partial or Assignment(), args, error), "error": _class(error)}
        except CalipyError as error:
            return {"v4": None, "v6": None, "error": _class(error)}

    async def _assign(self, args: Mapping[str, Any]) -> JSON:
        return await _outcome(
            self.allocator(args["host"]).assign(
                args["ip"], args.get("handle"), args.get("attrs"), intended_use=args.get("use") or None
            )
        )

    async def _release(self, args: Mapping[str, Any]) -> JSON:
        wanted = [ReleaseRequest(r["ip"], r.get("handle"), r.get("seq")) for r in args["ips"]]
        try:
            done = await self.allocator("nobody").release_ips(wanted)
        except CalipyError as error:
            return {"released": [], "unallocated": [], "error": _class(error)}
        return {"released": [r.address for r in done.processed], "unallocated": list(done.unallocated)}

    async def _release_handle(self, args: Mapping[str, Any]) -> JSON:
        counted = f"{IPAM}v2/handle/{args['handle']}" in self.expected
        try:
            await self.allocator("nobody").release_by_handle(args["handle"])
        except errors.HandleNotFoundError:
            return {} if counted else {"error": "missing"}  # Calico keeps a handle that counts too much
        except CalipyError as error:
            return {"error": _class(error)}
        return {}

    async def _claim(self, args: Mapping[str, Any]) -> JSON:
        try:
            claimed, failed = await self.allocator(args["host"]).claim_affinity(args["cidr"])
        except CalipyError as error:
            return {"claimed": [], "failed": [], "error": _class(error)}
        return {"claimed": claimed, "failed": failed}

    async def _release_affinity(self, args: Mapping[str, Any]) -> JSON:
        return await _outcome(
            self.allocator(args["host"]).release_affinity(args["cidr"], must_be_empty=args.get("mustBeEmpty", False))
        )

    async def _release_host(self, args: Mapping[str, Any]) -> JSON:
        return await _outcome(
            self.allocator(args["host"]).release_host_affinities(must_be_empty=args.get("mustBeEmpty", False))
        )

    async def _release_pool(self, args: Mapping[str, Any]) -> JSON:
        return await _outcome(self.allocator("nobody").release_pool_affinities(args.get("cidr") or args["pool"]))

    async def _remove_host(self, args: Mapping[str, Any]) -> JSON:
        return await _outcome(self.allocator("nobody").remove_host(args["host"]))

    async def _ensure(self, args: Mapping[str, Any]) -> JSON:
        # Calico's call looks at a family only if ordinals of its blocks are to be reserved for the host.
        del args
        return {}

    async def _set_config(self, args: Mapping[str, Any]) -> JSON:
        config = IPAMConfig(
            strict_affinity=args.get("strict", False),
            auto_allocate_blocks=args.get("auto", False),
            max_blocks_per_host=args.get("cap", 0),
            cooldown_seconds=args.get("cooldown", 0),
        )
        return await _outcome(self.allocator("nobody").set_config(config))

    async def _get_config(self, args: Mapping[str, Any]) -> JSON:
        del args
        config = await self.allocator("nobody").config()
        return {
            "config": {
                "auto": config.auto_allocate_blocks,
                "cap": config.max_blocks_per_host,
                "cooldown": config.cooldown_seconds,
                "strict": config.strict_affinity,
            }
        }

    async def _ips_by_handle(self, args: Mapping[str, Any]) -> JSON:
        counted = f"{IPAM}v2/handle/{args['handle']}" in self.expected
        try:
            return {"ips": await self.allocator("nobody").ips_by_handle(args["handle"])}
        except errors.HandleNotFoundError:
            return {"ips": []} if counted else {"error": "missing"}
        except CalipyError as error:
            return {"error": _class(error)}

    async def _attributes(self, args: Mapping[str, Any]) -> JSON:
        try:
            found = await self.allocator("nobody").attributes(args["ip"])
        except CalipyError as error:
            return {"error": _class(error)}
        attributes: dict[str, Any] = {"secondary": found.secondary} if found.secondary else {}
        return {"attrs": {**({"handle_id": found.handle_id} if found.handle_id else {}), **attributes}}

    async def _utilization(self, args: Mapping[str, Any]) -> JSON:
        del args
        usage = report.usage(await snapshot.read(self.store))
        return {
            "pools": [
                {
                    "name": pool.name or "orphaned allocation blocks",
                    "cidr": pool.cidr or "0.0.0.0/0",
                    "blocks": [
                        {
                            "cidr": block.cidr,
                            "capacity": block.total,
                            "inUse": block.in_use,
                            "reserved": block.reserved,
                            "available": block.available,
                        }
                        for block in pool.blocks
                    ],
                }
                for pool in (*usage.pools, usage.orphaned)
            ]
        }

    BY_NAME: Mapping[str, Callable[[Runner, Mapping[str, Any]], Coroutine[Any, Any, JSON]]] = {
        "auto": _auto,
        "assign": _assign,
        "release": _release,
        "releaseHandle": _release_handle,
        "claim": _claim,
        "releaseAffinity": _release_affinity,
        "releaseHost": _release_host,
        "releasePool": _release_pool,
        "removeHost": _remove_host,
        "ensure": _ensure,
        "config": _set_config,
        "getConfig": _get_config,
        "ipsByHandle": _ips_by_handle,
        "attrs": _attributes,
        "utilization": _utilization,
    }

    # Steps

    async def _call(self, step: Mapping[str, Any]) -> list[str]:
        found = await self.BY_NAME[step["do"]](self, step.get("args") or {})
        return _compare_result(step.get("result"), found)

    async def _parallel(self, step: Mapping[str, Any]) -> list[str]:
        calls = [self.BY_NAME[call["op"]](self, call) for call in step["args"]["batch"]]
        found = await asyncio.gather(*calls)
        differences: list[str] = []
        assigned: list[str] = []
        for expected, outcome in zip(step["result"]["results"], found, strict=True):
            for family in ("v4", "v6"):
                if expected.get(family) is not None:
                    assigned += outcome[family]["ips"]
                    if len(outcome[family]["ips"]) != len(expected[family]["ips"]):
                        differences.append(
                            f"{family}: got {outcome[family]['ips']}, expected {expected[family]['ips']}"
                        )
            if "claimed" in expected:
                both = sorted(expected["claimed"] + expected["failed"])
                if sorted(outcome["claimed"] + outcome["failed"]) != both:
                    differences.append(f"claimed or failed {outcome}, expected all of {both}")
        if len(assigned) != len(set(assigned)):
            differences.append(f"an address was assigned twice: {assigned}")
        return differences

    async def _etcd_put(self, step: Mapping[str, Any]) -> list[str]:
        value = step["text"] if "text" in step else step["value"]
        text = value if isinstance(value, str) else json.dumps(value)
        await self.store.put(step["key"], text.encode())
        self.expected[step["key"]] = value
        return []

    async def _etcd_delete(self, step: Mapping[str, Any]) -> list[str]:
        await self.store.txn([], [Delete(step["key"])])
        self.expected.pop(step["key"], None)
        return []

    async def _wait(self, step: Mapping[str, Any]) -> list[str]:
        self.clock.forward(step.get("seconds", 0))
        return []

    async def _resource(self, step: Mapping[str, Any]) -> list[str]:
        verbs = {"create": self.client.create, "apply": self.client.apply, "replace": self.client.replace}
        failed = ""
        for document in step["input"] if isinstance(step["input"], list) else [step["input"]]:
            try:
                resource = codec.read_document(document, document["kind"])
                if step["do"] == "delete":
                    await self.client.delete(resource.kind, resource.name, resource.namespace)
                else:
                    await verbs[step["do"]](resource)
            except CalipyError as error:
                failed = str(error)
        return _compare_exit(step, 1 if failed else 0, failed)

    async def _calicoctl(self, step: Mapping[str, Any]) -> list[str]:
        arguments = [str(argument) for argument in step["args"]]
        place = commands.Place(self.store, defaults=CALICO_DEFAULTS, now=self.clock.now, settle=0)
        if arguments[0] == "ipam":
            output = await commands.invoke(place, arguments[1:])
        else:
            output = await self._other_command(arguments)
        differences = _compare_exit(step, output.exit_code, output.text)
        if "table" in step and not step["exit"]:
            found = [output.columns, *output.rows]
            wanted = [step["table"]["columns"], *step["table"]["rows"]]
            if len(found) != len(wanted) or not all(map(_same_row, found, wanted)):
                differences.append(f"table {found}, expected {wanted}")
        missing = [word for word in step.get("mentions", []) if word not in output.text]
        return [*differences, *(f"does not mention {word!r}: {output.text}" for word in missing)]

    async def _other_command(self, arguments: Sequence[str]) -> commands.Output:
        try:
            match arguments:
                case ["delete", "ippool" | "node" as kind, name]:
                    await self.client.delete("IPPool" if kind == "ippool" else "Node", name)
                case ["datastore", "migrate", "lock" | "unlock" as verb]:
                    found = await self.client.get("ClusterInformation", "default")
                    if found is None:
                        return commands.Output(text="no cluster information", exit_code=1)
                    spec = replace(found.spec, datastore_ready=verb == "unlock")
                    await self.client.update(replace(found, spec=spec))
                case _:
                    return commands.Output(text=f"unknown command {arguments}", exit_code=1)
        except CalipyError as error:
            return commands.Output(text=str(error), exit_code=1)
        return commands.Output()

    async def _check(self, step: Mapping[str, Any]) -> list[str]:
        place = commands.Place(self.store, defaults=CALICO_DEFAULTS, now=self.clock.now, settle=0)
        output = await commands.invoke(place, ["check", "-o", "json"])
        differences = _compare_exit(step, output.exit_code, output.text)
        if differences:
            return differences
        if output.document["summary"] != step["summary"]:
            differences.append(f"summary {output.document['summary']}, expected {step['summary']}")
        if "report" in step and not self.bindings.match(step["report"], output.document["report"]):
            differences.append(f"report {output.document['report']}, expected {step['report']}")
        return differences

    CALLS: Mapping[str, Callable[[Runner, Mapping[str, Any]], Coroutine[Any, Any, list[str]]]] = {
        **dict.fromkeys(BY_NAME, _call),
        "parallel": _parallel,
        "etcd-put": _etcd_put,
        "etcd-delete": _etcd_delete,
        "wait": _wait,
        "create": _resource,
        "apply": _resource,
        "replace": _resource,
        "delete": _resource,
        "calicoctl": _calicoctl,
        "ipam-check": _check,
    }

    # States

    async def _revision(self) -> int:
        return (await self.store.list(IPAM)).revision

    async def _state(self, revision: int = 0) -> State:
        listing = await self.store.list("/calico/", revision=revision)
        return {kv.key: json.loads(kv.value) if kv.value else "" for kv in listing.items}

    async def _compare_states(self, step: Mapping[str, Any], before: int) -> list[str]:
        after = await self._revision()
        seen = [await self._state(revision) for revision in range(before + 1, after + 1)]
        if step.get("nondeterministic"):
            self.orderly = False
        if not self.orderly:
            return invariants(seen[-1] if seen else await self._state())
        if "writes" not in step:
            return []
        passed = [self.expected]
        for write in step["writes"]:
            state = dict(passed[-1])
            if write["op"] == "put":
                state[write["key"]] = write["value"]
            else:
                state.pop(write["key"], None)
            passed.append(state)
        self.expected = passed[-1]
        differences: list[str] = []
        position = 0
        for number, state in enumerate(seen):
            differences += [f"write {number}: {text}" for text in undercounts(state, passed)]
            while position < len(passed) and not self._same(passed[position], state):
                position += 1
            if position == len(passed):
                nearest = first_difference(canonical(passed[-1]), canonical(state), self.bindings)
                return [*differences, f"write {number} leaves a state that Calico never passes through; {nearest}"]
        current = seen[-1] if seen else await self._state()
        differences += [] if step.get("exit") else self._compare_resources(step["writes"], current)
        if not self._same(passed[-1], current):
            differences.append(
                "the state afterwards differs: "
                + first_difference(canonical(passed[-1]), canonical(current), self.bindings)
            )
        return differences

    def _compare_resources(self, writes: Sequence[Mapping[str, Any]], current: State) -> Iterator[str]:
        """The v3 resources that a successful step wrote."""
        for path, expected in {w["key"]: w.get("value") for w in writes if not w["key"].startswith(IPAM)}.items():
            if not self.bindings.match(expected, current.get(path)):
                yield f"{path} is {current.get(path)}, expected {expected}"

    def _same(self, expected: State, found: State) -> bool:
        attempt = copy.deepcopy(self.bindings)
        if not attempt.match(canonical(expected), canonical(found)):
            return False
        self.bindings = attempt
        return True


def _index(pool: Pool, cidr: str) -> int:
    first = int(ipaddress.ip_network(cidr).network_address) - int(pool.network.network_address)
    return first >> (pool.network.max_prefixlen - pool.block_size)


def _assignment(assignment: Assignment, args: Mapping[str, Any], error: errors.IPAMError | None = None) -> JSON:
    # An error in choosing a pool leaves the family without a result, an error in filling it does not.
    hopeless = isinstance(
        error, errors.UnknownNodeError | errors.UnknownPoolError | errors.NoPoolError | errors.WrongUseError
    )
    families = dict(assignment.families)
    if hopeless and families:
        families.pop(list(families)[-1])

    def shown(part: FamilyAssignment | None) -> JSON:
        if part is None:
            return None
        ips = [f"{a}/{block.partition('/')[2]}" for a, block in zip(part.addresses, part.blocks, strict=True)]
        return {"ips": ips, "msgs": len(part.messages), "requested": part.requested}

    del args
    return {"v4": shown(families.get(4)), "v6": shown(families.get(6))}


async def _outcome(call: Coroutine[Any, Any, Any]) -> JSON:
    try:
        await call
    except CalipyError as error:
        return {"error": _class(error)}
    return {}


def _class(error: CalipyError) -> str:
    return ERRORS.get(type(error), type(error).__name__)


def _compare_result(expected: JSON, found: JSON) -> list[str]:
    if expected is None:
        return []
    if ("error" in expected) != ("error" in found):
        return [f"result {found}, expected {expected}"]
    # How many messages explain a short result, and the words for an error, are each implementation's own.
    if _comparable(expected, "error" in expected) != _comparable(found, "error" in expected):
        return [f"result {found}, expected {expected}"]
    return []


def _comparable(value: JSON, failed: bool) -> JSON:
    if not isinstance(value, dict):
        return value
    kept = {name: part for name, part in value.items() if name != "error"}
    if "msgs" in kept:
        kept["msgs"] = None if failed else bool(kept["msgs"])
    return {name: _comparable(part, failed) for name, part in kept.items()}


def _compare_exit(step: Mapping[str, Any], code: int, text: str) -> list[str]:
    return [] if bool(code) == bool(step["exit"]) else [f"exit {code}, expected {step['exit']}: {text}"]


def _same_row(found: Sequence[str], expected: Sequence[str]) -> bool:
    """``<pointer>`` is an address in Go's memory that its tool prints by mistake."""
    return len(found) == len(expected) and all(
        wanted in {cell, "<pointer>"} for cell, wanted in zip(found, expected, strict=True)
    )


def learn_choices(case: Mapping[str, Any]) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], list[str]]]:
    """The blocks each owner was the first to make, per pool: the first, and all in order."""
    pools = [
        ipaddress.ip_network(document["spec"]["cidr"])
        for document in _documents(case)
        if document.get("kind") == "IPPool"
    ]
    made: dict[tuple[str, str], list[str]] = defaultdict(list)
    for step in case["steps"]:
        if step["do"] not in {"auto", "parallel"}:
            continue
        for write in step.get("writes", []):
            key = parse(write["key"])
            if isinstance(key, BlockAffinityKey) and write["op"] == "put" and write.get("was") == "absent":
                network = ipaddress.ip_network(key.cidr)
                for pool in pools:
                    if pool.version == network.version and network.network_address in pool:
                        made[key.host, str(pool)].append(key.cidr)
    return {owner: cidrs[0] for owner, cidrs in made.items()}, dict(made)


def _documents(case: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from case.get("setup", [])
    for step in case["steps"]:
        documents = step.get("input", [])
        yield from documents if isinstance(documents, list) else [documents]
