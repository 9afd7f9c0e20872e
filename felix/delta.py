"""Desired tables, what the kernel holds, and the smallest iptables-restore input between them. Pure.

Chains are compared by the hashes of their rules, never by rule text, which the kernel prints in its own way. A chain
that differs is rewritten whole, in one transaction with all others of its table. Cost follows the chains that changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from calipy.felix.ownership import owns_chain, owns_unhashed_rule
from calipy.felix.render import syntax
from calipy.felix.render.rule import Chain, Hook, Rule

_NOT_A_FILTER: Final = "nat"


class KernelRule(NamedTuple):
    """A rule in a chain that is not ours.

    Attributes:
        digest: our hash; "" for a rule that is ours but has none; None for somebody else's rule.
        text: the rule without ``-A chain``; needed for ours only, to delete it.
    """

    digest: str | None
    text: str = ""


@dataclass(slots=True)
class Actual:
    """What the kernel holds of one table.

    Attributes:
        chains: our chains → hash of each rule, None for a rule without one.
        hooks: rules of the kernel's and other people's chains, of those that have rules of ours or that we hook into.
    """

    chains: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    hooks: dict[str, tuple[KernelRule, ...]] = field(default_factory=dict)


class Table:
    """Desired content of one table. Of the chains offered, those that something in force leads to are programmed.

    A chain that is led to but not offered drops everything, and so does one that the kernel refused, until it changes:
    what is missing fails closed.

    Attributes:
        dirty: names of our chains that may differ from the kernel; ``plan`` looks at these only.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dirty: set[str] = set()
        self._offered: dict[str, Chain] = {}
        self._refused: dict[str, str] = {}
        self._hooks: dict[str, Hook] = {}
        self._references: Counter[str] = Counter()

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """By the kernel's chain."""
        return self._hooks

    @property
    def refused(self) -> Mapping[str, str]:
        """Chains that the kernel did not take → why."""
        return self._refused

    def set_hook(self, hook: Hook) -> None:
        """Hook into a chain of the kernel."""
        old = self._hooks.get(hook.chain)
        self._hooks[hook.chain] = hook
        self._refer(hook.targets)
        if old:
            self._release(old.targets)

    def put(self, chain: Chain) -> None:
        """Offer a chain, or its new content."""
        if self._offered.get(chain.name) != chain:
            self._exchange(chain.name, chain, None)

    def drop(self, name: str) -> None:
        """Withdraw a chain."""
        if name in self._offered:
            self._exchange(name, None, None)

    def pin(self, names: Iterable[str]) -> None:
        """Have chains programmed whether anything leads to them or not, until ``unpin``."""
        self._refer(names)

    def unpin(self, names: Iterable[str]) -> None:
        """Take ``pin`` back."""
        self._release(names)

    def refuse(self, name: str, reason: str) -> None:
        """The kernel does not take the chain's present content: drop in its place."""
        self._exchange(name, self._offered.get(name), reason)

    def forgive(self) -> None:
        """Have the kernel asked once more about the chains that it refused: what they lacked may be there now."""
        for name in tuple(self._refused):
            self._exchange(name, self._offered.get(name), None)

    def reachable(self, names: Iterable[str]) -> set[str]:
        """The chains and all that they lead to."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._content(name).targets
        return found

    def from_hooks(self) -> list[str]:
        """Names of all chains that the kernel should hold, each behind one that leads to it. Linear in the table."""
        found = dict.fromkeys(target for hook in self._hooks.values() for target in hook.targets)
        waiting = list(found)
        for name in waiting:
            new = [target for target in self._content(name).targets if target not in found]
            found.update(dict.fromkeys(new))
            waiting += new
        return waiting

    def content(self, name: str) -> Chain | None:
        """What the kernel should hold under the name; None: no such chain."""
        return self._content(name) if self._references[name] else None

    def programmed(self) -> Iterator[Chain]:
        """All chains that the kernel should hold."""
        return (self._content(name) for name, count in self._references.items() if count)

    def _content(self, name: str) -> Chain:
        chain = self._offered.get(name)
        if chain is not None and name not in self._refused:
            return chain
        return self.stand_in(name, "Refused by the kernel" if name in self._refused else "Not known")

    def stand_in(self, name: str, why: str) -> Chain:
        """What stands where a chain cannot be: it drops, in a table that filters."""
        rules = (Rule("", syntax.DROP, (f"{why}: drop until it changes",)),)
        return Chain(name, () if self.name == _NOT_A_FILTER else rules)

    def _exchange(self, name: str, chain: Chain | None, refusal: str | None) -> None:
        before = self._content(name).targets
        if chain is None:
            self._offered.pop(name, None)
        else:
            self._offered[name] = chain
        if refusal is None:
            self._refused.pop(name, None)
        else:
            self._refused[name] = refusal
        if self._references[name]:
            self.dirty.add(name)
            self._refer(self._content(name).targets)
            self._release(before)

    def _refer(self, names: Iterable[str]) -> None:
        for name in names:
            self._references[name] += 1
            if self._references[name] == 1:
                self.dirty.add(name)
                self._refer(self._content(name).targets)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            self._references[name] -= 1
            if not self._references[name]:
                del self._references[name]
                self.dirty.add(name)
                self._release(self._content(name).targets)


class Difference(NamedTuple):
    """One object that is not as it should be: where it is (a table, ``ipset``, …) and its name; texts for people."""

    place: str
    name: str
    expected: str
    found: str


@dataclass(slots=True)
class Plan:
    """How to bring one table in line.

    Attributes:
        lines: first transaction, without ``*table`` and ``COMMIT``.
        owners: the chain that each of ``lines`` is about.
        deletions: second transaction: chains that nothing leads to any more.
        chains, hooks: what the kernel will hold of the chains touched, None for deleted ones.
        differences: each chain or hook that is touched, for logs.
    """

    table: str
    lines: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    deletions: list[str] = field(default_factory=list)
    chains: dict[str, tuple[str | None, ...] | None] = field(default_factory=dict)
    hooks: dict[str, tuple[KernelRule, ...]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lines or self.deletions)

    @property
    def transactions(self) -> int:
        """How many transactions the kernel will count."""
        return bool(self.lines) + bool(self.deletions)

    def restore_input(self) -> list[str]:
        """Lines for ``iptables-restore --noflush``.

        Deletions are a transaction of their own: nf_tables refuses to delete a chain together with its last reference.
        """
        lines = []
        if self.lines:
            lines += [f"*{self.table}", *self.lines, "COMMIT"]
        if self.deletions:
            lines += [f"*{self.table}", *self.deletions, "COMMIT"]
        return lines

    def owner_of_line(self, number: int) -> str:
        """The chain that line ``number`` (from 1) of ``restore_input`` is about, or ""."""
        index = number - 2
        return self.owners[index] if self.lines and 0 <= index < len(self.owners) else ""

    def record(self, actual: Actual) -> None:
        """Note in ``actual`` that the plan has been carried out."""
        for name, hashes in self.chains.items():
            if hashes is None:
                actual.chains.pop(name, None)
            else:
                actual.chains[name] = hashes
        actual.hooks.update(self.hooks)


def compare(table: Table, actual: Actual) -> set[str]:
    """Names of our chains that differ; for after a full read. Linear in the table."""
    wanted = {chain.name: chain for chain in table.programmed()}
    differing = {name for name, chain in wanted.items() if actual.chains.get(name) != chain.hashes}
    return differing | (actual.chains.keys() - wanted.keys())


def plan(table: Table, actual: Actual, *, only_missing: bool = False) -> Plan:
    """The plan for the table's dirty chains and its hooks. Linear in the rules of what differs.

    Args:
        table: desired.
        actual: as read.
        only_missing: leave alone every chain of ours that has rules, and every chain of the kernel that leads to ours.
    """
    result = Plan(table.name)
    rewritten: list[Chain] = []
    for name in sorted(table.dirty):
        wanted, found = table.content(name), actual.chains.get(name)
        if (wanted.hashes if wanted else None) == found or (only_missing and (found or wanted is None)):
            continue
        _declare(result, name, wanted, found)
        if wanted is None:
            result.deletions.append(f"-X {name}")
        else:
            rewritten.append(wanted)
    _fill(result, rewritten)
    for name in dict.fromkeys((*table.hooks, *actual.hooks)):
        if only_missing and any(rule.digest is not None for rule in actual.hooks.get(name, ())):
            continue
        _plan_hook(result, table.hooks.get(name) or Hook(name), actual.hooks.get(name, ()))
    return result


def trial(table: Table, actual: Actual, names: Iterable[str]) -> Plan:
    """A plan for some chains alone, to find out whether the kernel takes them; hooks and deletions wait.

    Chains that they lead to and that do not exist yet are made, and drop. Linear in the rules of ``names``.
    """
    result = Plan(table.name)
    chains = [chain for name in names if (chain := table.content(name)) and chain.hashes != actual.chains.get(name)]
    there = actual.chains.keys() | {chain.name for chain in chains}
    targets = dict.fromkeys(target for chain in chains for target in chain.targets if target not in there)
    chains += (table.stand_in(target, "Not written yet") for target in targets)
    for chain in chains:
        _declare(result, chain.name, chain, actual.chains.get(chain.name))
    _fill(result, chains)
    return result


def _declare(result: Plan, name: str, wanted: Chain | None, found: tuple[str | None, ...] | None) -> None:
    """Make a chain, or empty it."""
    hashes = wanted.hashes if wanted else None
    result.lines.append(f":{name} - -")
    result.owners.append(name)
    result.chains[name] = hashes
    result.differences.append(Difference(result.table, name, _shown(hashes), _shown(found)))


def _fill(result: Plan, chains: Iterable[Chain]) -> None:
    for chain in chains:
        for line in chain.lines():
            result.lines.append(line)
            result.owners.append(chain.name)


def _plan_hook(result: Plan, hook: Hook, found: tuple[KernelRule, ...]) -> None:
    """Expected are our rules, then others' in whatever number, then ours; anything else is put right as a whole."""
    heads, tails = hook.insert_hashes, hook.append_hashes
    digests = [rule.digest for rule in found]
    others = digests.count(None)
    if digests == [*heads, *[None] * others, *tails]:
        return
    lines = [f"-D {hook.chain} {rule.text}" for rule in found if rule.digest is not None]
    lines += [f"-I {hook.chain} {text}" for text in reversed(hook.insert_lines())]
    lines += [f"-A {hook.chain} {text}" for text in hook.append_lines()]
    result.lines += lines
    result.owners += [hook.chain] * len(lines)
    result.hooks[hook.chain] = (
        *map(KernelRule, heads, hook.insert_lines()),
        *[KernelRule(None)] * others,
        *map(KernelRule, tails, hook.append_lines()),
    )
    result.differences.append(Difference(result.table, hook.chain, _shown((*heads, *tails)), _shown(tuple(digests))))


def _shown(hashes: tuple[str | None, ...] | None) -> str:
    if hashes is None:
        return "absent"
    if len(hashes) > 4:
        return f"{len(hashes)} rules ending in {hashes[-1] or 'a foreign rule'}"
    return " ".join(digest or "foreign" for digest in hashes) or "empty"


def parse_save(text: str, hooks: Mapping[str, Iterable[str]]) -> dict[str, Actual]:
    """Read ``iptables-save`` output.

    Args:
        text: output, of one or all tables.
        hooks: table → chains of the kernel whose rules matter even if none is ours.

    Returns:
        Table name → content; tables that the kernel does not have are absent.

    Raises:
        ValueError: the output says that a table of ours holds rules that iptables cannot show (and exits with 0).
    """
    tables: dict[str, Actual] = {}
    found_chains: dict[str, list[str | None]] = {}
    found_hooks: dict[str, list[KernelRule]] = {}
    watched: frozenset[str] = frozenset()
    for line in text.splitlines():
        if line.startswith("-A "):
            name, _, rest = line[3:].partition(" ")
            digest = _digest_of(rest)
            if name in found_chains:
                found_chains[name].append(digest)
                continue
            if digest is None and owns_unhashed_rule(rest):
                digest = ""
            found_hooks.setdefault(name, []).append(KernelRule(digest, rest if digest is not None else ""))
        elif line.startswith(":"):
            name = line[1:].partition(" ")[0]
            if owns_chain(name):
                found_chains[name] = []
        elif line.startswith("*"):
            table = line[1:].strip()
            watched = frozenset(hooks.get(table, ()))
            found_chains, found_hooks = {}, {}
            tables[table] = Actual()
        elif line == "COMMIT" and tables:
            actual = tables[next(reversed(tables))]
            actual.chains = {name: tuple(hashes) for name, hashes in found_chains.items()}
            actual.hooks = {
                name: tuple(rules)
                for name, rules in found_hooks.items()
                if name in watched or any(rule.digest is not None for rule in rules)
            }
        elif "is incompatible" in line and any(f"`{table}'" in line or f" {table} " in line for table in hooks):
            raise ValueError(line.strip("# "))
    return tables


_COMMENT: Final = "-m comment --comment "


def _digest_of(rule: str) -> str | None:
    """The hash in the first comment. iptables-save leaves quotes out where none are needed; matches may come first."""
    start = rule.find(_COMMENT + '"cali:')
    if start >= 0:
        return rule[start + len(_COMMENT) + 6 :].partition('"')[0]
    start = rule.find(_COMMENT + "cali:")
    if start >= 0:
        return rule[start + len(_COMMENT) + 5 :].partition(" ")[0]
    return None
