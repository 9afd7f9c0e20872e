"""Rules and chains as values: what iptables-restore reads, and the hashes by which rules are known again. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from calipy.felix.messages import EndpointID, PolicyID

HASH_LENGTH: Final = 16
HASH_PREFIX: Final = "cali:"
_UNSAFE: Final = re.compile(r"[^\w @%+=:,./-]", re.ASCII)
_MAX_COMMENT: Final = 256
_TARGET: Final = re.compile(r"--(?:jump|goto) (cali-\S+)")


class Origin(NamedTuple):
    """Where a rule came from, so that a verdict can be explained.

    Attributes:
        kind: what kind of thing asked for the rule.
        subject: the policy, profile name, tier name or endpoint; "" for static rules.
        direction: as the policy sees it, or "".
        position: place of the policy rule in its direction, from 0; -1 where that has no meaning.
    """

    kind: Literal["policy", "profile", "tier", "endpoint", "static"]
    subject: PolicyID | EndpointID | str = ""
    direction: Literal["ingress", "egress", ""] = ""
    position: int = -1


STATIC: Final = Origin("static")


class Rule(NamedTuple):
    """One iptables rule.

    Attributes:
        match: match options in iptables' long form, "" matches every packet.
        action: ``--jump …`` or ``--goto …`` with its options, "" for a rule that only carries a comment.
        comments: shown in ``iptables-save``, unescaped here.
        origin: why the rule exists; not part of the text.
    """

    match: str
    action: str
    comments: tuple[str, ...] = ()
    origin: Origin = STATIC

    @property
    def target(self) -> str:
        """The chain of ours that the rule jumps or goes to, or ""."""
        found = _TARGET.match(self.action)
        return found[1] if found else ""

    @property
    def body(self) -> str:
        """The rule without ``-A chain`` and without the hash comment."""
        return " ".join(filter(None, (*self._remarks, self.match, self.action)))

    def text(self, digest: str) -> str:
        """The rule without ``-A chain``, as it is written.

        The kernel asks a rule's matches in turn, and comments are matches to it: last, they cost those packets nothing
        that the others turn away. The hash does not depend on that; it stays the one of ``body``.
        """
        return " ".join(filter(None, (self.match, hash_comment(digest), *self._remarks, self.action)))

    @property
    def _remarks(self) -> list[str]:
        return [f'-m comment --comment "{escape_comment(text)}"' for text in self.comments]


def escape_comment(text: str) -> str:
    """Replace what iptables-restore or a log parser could misread by ``_`` and cut at 256 characters."""
    return _UNSAFE.sub("_", text)[:_MAX_COMMENT]


def rule_hashes(chain: str, bodies: tuple[str, ...]) -> tuple[str, ...]:
    """Identity of each rule: 16 characters that depend on the chain's name, the rule and all rules before it.

    The same values as Felix computes (felix/iptables/renderer.go), so that each recognises the other's unchanged rules.
    """
    state = hashlib.sha224(chain.encode()).digest()
    result = []
    for body in bodies:
        state = hashlib.sha224(state + f"-A {chain} HASH{' ' if body else ''}{body}".encode()).digest()
        result.append(base64.urlsafe_b64encode(state[:12]).decode())
    return tuple(result)


@dataclass(frozen=True)
class Chain:
    """A chain of ours: its whole content, in order. Equal chains have equal text; hashes are computed once, lazily."""

    name: str
    rules: tuple[Rule, ...]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """One hash a rule, as they stand in the kernel."""
        return rule_hashes(self.name, tuple(rule.body for rule in self.rules))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Chains of ours that the rules lead to, each once, in order."""
        return tuple(dict.fromkeys(target for rule in self.rules if (target := rule.target)))

    def lines(self) -> Iterator[str]:
        """``-A`` lines for iptables-restore."""
        for digest, rule in zip(self.hashes, self.rules, strict=True):
            yield f"-A {self.name} {rule.text(digest)}"


@dataclass(frozen=True)
class Hook:
    """Our rules in a chain of the kernel: at its head (``inserts``) and at its tail (``appends``)."""

    chain: str
    inserts: tuple[Rule, ...] = ()
    appends: tuple[Rule, ...] = ()

    @cached_property
    def insert_hashes(self) -> tuple[str, ...]:
        """Hashes of the rules at the head."""
        return rule_hashes(self.chain, tuple(rule.body for rule in self.inserts))

    @cached_property
    def append_hashes(self) -> tuple[str, ...]:
        """Hashes of the rules at the tail; told apart from the head's by the chain's name in the hash."""
        return rule_hashes(f"{self.chain}*appends*", tuple(rule.body for rule in self.appends))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Chains of ours that the hook leads to."""
        rules = (*self.inserts, *self.appends)
        return tuple(dict.fromkeys(target for rule in rules if (target := rule.target)))

    def insert_lines(self) -> list[str]:
        """``rule text without -A chain`` of the rules at the head, in order."""
        return _texts(self.insert_hashes, self.inserts)

    def append_lines(self) -> list[str]:
        """The same for the tail."""
        return _texts(self.append_hashes, self.appends)


def _texts(hashes: tuple[str, ...], rules: tuple[Rule, ...]) -> list[str]:
    return [rule.text(digest) for digest, rule in zip(hashes, rules, strict=True)]


def hash_comment(digest: str) -> str:
    """The match that carries a rule's hash."""
    return f'-m comment --comment "{HASH_PREFIX}{digest}"'
