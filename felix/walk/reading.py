"""The text of a rule → predicates and a target, in iptables' grammar as far as we write it. Pure.

Unknown words raise, and so do combinations that the kernel refuses: ports without a protocol that has them, ICMP types
without ICMP, two protocols or addresses of a side.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from calipy.felix.walk import matching
from calipy.felix.walk.matching import Option, Predicate
from calipy.felix.walk.packet import WalkError
from calipy.net import Family
from calipy.policy import dscp

TargetKind: TypeAlias = Literal[
    "none", "jump", "goto", "return", "accept", "drop", "reject", "mark", "dscp", "notrack", "log", "translate"
]

_SHORT: Final = {
    "-p": "--protocol",
    "-s": "--source",
    "-d": "--destination",
    "-i": "--in-interface",
    "-o": "--out-interface",
}
_BASIC: Final = frozenset(_SHORT.values())
_ONE_PORT: Final = frozenset({"--sport", "--dport"})
"""Options of the protocol's own module, which ``-p`` loads."""
_OPTIONS: Final = {
    "mark": frozenset({"--mark"}),
    "conntrack": frozenset({"--ctstate"}),
    "set": frozenset({"--match-set"}),
    "multiport": frozenset({"--source-ports", "--destination-ports"}),
    "icmp": frozenset({"--icmp-type"}),
    "icmp6": frozenset({"--icmpv6-type"}),
    "rpfilter": frozenset({"--invert", "--validmark"}),
    "addrtype": frozenset({"--src-type", "--dst-type", "--limit-iface-out"}),
    "limit": frozenset({"--limit", "--limit-burst"}),
    "devgroup": frozenset({"--src-group", "--dst-group"}),
}
"""Options of each module that rules of ours use."""
_ARGUMENTS: Final = {"--match-set": 2, "--invert": 0, "--validmark": 0, "--limit-iface-out": 0}
"""Options that do not take one argument."""
_WHOLE: Final = frozenset({"rpfilter", "addrtype", "limit"})
"""Modules whose options make one condition together."""
_ICMP: Final[dict[str, tuple[Family, int]]] = {"icmp": (4, 1), "icmp6": (6, 58)}


class Target(NamedTuple):
    """What a rule does with a packet.

    Attributes:
        chain: for ``jump`` and ``goto``.
        value, mask: for ``mark``: bits under ``mask`` become ``value``; for ``dscp`` the code point.
    """

    kind: TargetKind
    chain: str = ""
    value: int = 0
    mask: int = 0


@lru_cache(maxsize=16384)
def read_match(text: str, family: Family) -> tuple[Predicate, ...]:
    """Conditions of a rule, all of which must hold.

    Raises:
        WalkError: a match that is not modelled, or that the kernel refuses.
    """
    try:
        groups = list(_groups(shlex.split(text)))
        _check(groups)
        return tuple(predicate for module, options in groups for predicate in _predicates(module, options, family))
    except (WalkError, ValueError) as error:
        raise WalkError(f"match {text!r}: {error}") from None


_Group: TypeAlias = tuple[str, tuple[Option, ...]]


def _groups(words: list[str]) -> Iterator[_Group]:
    """Options by the ``-m`` that they belong to; "" for those without."""
    module, gathered = "", list[Option]()
    waiting = iter(words)
    negated = False
    for word in waiting:
        if word == "!":
            negated = True
            continue
        if word in {"-m", "--match"}:
            yield module, tuple(gathered)
            module, gathered = next(waiting, ""), []
            if module not in _OPTIONS:
                raise WalkError(f"module {module!r} is not modelled")
            continue
        name = _SHORT.get(word, word)
        arguments = tuple(next(waiting, "") for _ in range(_ARGUMENTS.get(name, 1)))
        option = Option(name, arguments, negated)
        if name in _BASIC or name in _ONE_PORT:
            yield "", (option,)
        elif name in _OPTIONS.get(module, ()):
            gathered.append(option)
        else:
            raise WalkError(f"option {word!r} is not modelled")
        negated = False
    yield module, tuple(gathered)


def _predicates(module: str, options: tuple[Option, ...], family: Family) -> Iterator[Predicate]:
    if module in _WHOLE:
        yield _whole(module, options)
        return
    for option in options:
        predicate = _single(module, option, family)
        yield _negation(predicate) if option.negated else predicate


def _whole(module: str, options: tuple[Option, ...]) -> Predicate:
    if module == "rpfilter":
        return matching.reverse_path(options)
    if module == "addrtype":
        return matching.address_type(options)
    return lambda sight: sight.packet.within_limits


def _single(module: str, option: Option, family: Family) -> Predicate:
    if module == "mark":
        return matching.mark(option)
    if module == "conntrack":
        return matching.conntrack(option)
    if module == "set":
        return matching.in_set(option, family)
    if module == "multiport" or option.name in _ONE_PORT:
        return matching.ports(option)
    if module == "devgroup":
        return matching.link_group(option)
    if module in _ICMP:
        if _ICMP[module][0] != family:
            raise WalkError(f"{module} in a rule for IPv{family}")
        return matching.icmp(option, family)
    return matching.basic(option, family)


def _negation(predicate: Predicate) -> Predicate:
    return lambda sight: not predicate(sight)


def _check(groups: Iterable[_Group]) -> None:
    """What depends on a protocol must have it in the rule: the kernel looks at nothing else. And what iptables takes
    once only stands there once.
    """
    asked = [(module, option) for module, options in groups for option in options]
    protocol = None
    given: set[str] = set()
    for _, option in asked:
        if option.name in given & (_BASIC | _ONE_PORT):
            raise WalkError(f"{option.name} twice")
        given.add(option.name)
        if option.name == "--protocol" and not option.negated:
            protocol = matching.protocol_number(option.arguments[0])
    for module, option in asked:
        with_ports = module == "multiport" or option.name in _ONE_PORT
        if with_ports and (protocol is None or not matching.has_ports(protocol)):
            raise WalkError("ports without a protocol that has them")
        if option.name in _ONE_PORT and "," in option.arguments[0]:
            raise WalkError(f"several ports in {option.name}")
        if module in _ICMP and protocol != _ICMP[module][1]:
            raise WalkError(f"{module} without its protocol")


_TARGET: Final = re.compile(r"--(jump|goto) (\S+)(?: (.*))?")
_PLAIN: Final[dict[str, TargetKind]] = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "reject",
    "RETURN": "return",
    "NOTRACK": "notrack",
}
_TRANSLATIONS: Final = frozenset({"MASQUERADE", "SNAT"})


@lru_cache(maxsize=4096)
def read_target(text: str) -> Target:
    """What the action of a rule does.

    Raises:
        WalkError: a target that is not modelled.
    """
    if not text:
        return Target("none")
    found = _TARGET.fullmatch(text)
    if found is None:
        raise WalkError(f"action {text!r} is not modelled")
    way, name, options = found[1], found[2], found[3] or ""
    if way == "goto":
        return Target("goto", name)
    if name == "MARK" and options.startswith("--set-mark "):
        value, mask = matching.masked(options.removeprefix("--set-mark "))
        return Target("mark", value=value, mask=mask)
    if name == "DSCP" and options.startswith("--set-dscp "):
        value = int(options.removeprefix("--set-dscp "), 0)
        if not 0 <= value <= dscp.LARGEST:
            raise WalkError(f"code point {value} of DSCP")
        return Target("dscp", value=value)
    if name in _PLAIN and not options:
        return Target(_PLAIN[name])
    if name == "LOG":
        return Target("log")
    if name in _TRANSLATIONS:
        return Target("translate")
    if name != name.upper() and not options:
        return Target("jump", name)
    raise WalkError(f"target {text!r} is not modelled")
