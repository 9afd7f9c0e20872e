"""Policies and profiles compiled to chains (felix/rules/policy.go). Pure.

One policy rule becomes one or more iptables rules. iptables ANDs what stands in one rule and allows one address match
a side and fifteen port slots, so a list of alternatives that does not fit spills into *match blocks*: rules before the
final one that work out, in mark bit Scratch0, whether every block has a match. Felix resets the bit of the current
block (Scratch1) only once for all blocks, so that from the third positive block on a packet may pass without matching;
here every positive block after the first starts by clearing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from calipy.felix import messages
from calipy.felix.config import FelixConfig
from calipy.felix.messages import ActivePolicy, ActiveProfile, Match, PolicyID, PortRange
from calipy.felix.render import syntax
from calipy.felix.render.marks import Marks
from calipy.felix.render.names import SHORT_KINDS, Direction, policy_chain, profile_chain, set_name
from calipy.felix.render.rule import Chain, Origin, Rule, escape_comment
from calipy.net import Family, family_of

_PORT_SLOTS: Final = 15
_MAX_LOG_PREFIX: Final = 27
_CATCH_ALL: Final = frozenset({"0.0.0.0/0", "::/0"})
_ICMP_NAMES: Final = {4: ("icmp", 1), 6: ("icmpv6", 58)}


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What rendering a rule needs beside the rule."""

    family: Family
    config: FelixConfig
    marks: Marks


def policy_chains(context: PolicyContext, policy: ActivePolicy) -> tuple[Chain, Chain]:
    """The inbound and the outbound chain of a policy."""
    return (
        _policy_chain(context, policy, policy.inbound, "ingress"),
        _policy_chain(context, policy, policy.outbound, "egress"),
    )


def profile_chains(context: PolicyContext, profile: ActiveProfile) -> tuple[Chain, Chain]:
    """The inbound and the outbound chain of a profile."""

    def chain(rules: tuple[messages.Rule, ...], direction: Direction) -> Chain:
        compiled = _compile_rules(
            context,
            rules,
            Origin("profile", profile.name, direction),
            _log_prefix(context.config, "", None, profile.name),
        )
        if any(rule.action == "pass" for rule in rules):
            # The bit may be left from the last tier or another profile, and would end this one at once (as in Felix).
            compiled.insert(0, Rule("", syntax.clear_mark(context.marks.pass_), (), Origin("profile", profile.name)))
        title = f"Profile {profile.name} {direction}"
        return Chain(
            profile_chain(profile.name, direction), _finished(compiled, title, Origin("profile", profile.name))
        )

    return chain(profile.inbound, "ingress"), chain(profile.outbound, "egress")


def _policy_chain(
    context: PolicyContext, policy: ActivePolicy, rules: tuple[messages.Rule, ...], direction: Direction
) -> Chain:
    identity = policy.id
    owner = f"{identity.namespace}/{identity.name}" if identity.namespace else identity.name
    prefix = _log_prefix(context.config, policy.tier, identity, identity.name)
    compiled = _compile_rules(context, rules, Origin("policy", identity, direction), prefix)
    title = f"{identity.kind} {owner} {direction}"
    return Chain(policy_chain(identity, direction), _finished(compiled, title, Origin("policy", identity, direction)))


def _log_prefix(config: FelixConfig, tier: str, policy: PolicyID | None, name: str) -> str:
    """Expand ``%t`` tier, ``%k`` kind, ``%n`` name and ``%p`` namespace/name."""
    prefix = config.log_prefix
    if "%" not in prefix:
        return prefix
    kind = SHORT_KINDS.get(policy.kind, policy.kind) if policy else "pro"
    full = f"{policy.namespace}/{policy.name}" if policy and policy.namespace else name
    for code, value in (("%t", tier), ("%k", kind), ("%p", full), ("%n", name)):
        prefix = prefix.replace(code, value)
    return prefix


def _finished(rules: list[Rule], title: str, origin: Origin) -> tuple[Rule, ...]:
    """Strip RETURNs from the end, where they do nothing, and put the owner's name on the first rule."""
    while rules and rules[-1].action == syntax.RETURN:
        rules.pop()
    if not rules:
        return (Rule("", "", (title,), origin),)
    rules[0] = rules[0]._replace(comments=(*rules[0].comments, title))
    return tuple(rules)


def _compile_rules(
    context: PolicyContext, rules: tuple[messages.Rule, ...], origin: Origin, log_prefix: str
) -> list[Rule]:
    compiled: list[Rule] = []
    for position, rule in enumerate(rules):
        compiled += compile_rule(context, rule, origin._replace(position=position), log_prefix)
    return compiled


def compile_rule(context: PolicyContext, rule: messages.Rule, origin: Origin, log_prefix: str) -> list[Rule]:
    """The iptables rules of one policy rule in one family; none if it cannot match a packet of the family."""
    family = context.family
    if rule.ip_version not in {None, family}:
        return []
    source, destination = _nets_of_family(rule.src, family), _nets_of_family(rule.dst, family)
    if source is None or destination is None:
        return []
    protocol = _protocol(rule, family)
    if protocol is None:
        return []
    blocks = _MatchBlocks(context.marks)
    sides = (_Side(source, "src", family), _Side(destination, "dst", family))
    for side in sides:
        side.spill_ports(blocks, protocol)
    for side in sides:
        side.spill_nets(blocks)
    for side in sides:
        side.spill_negated_nets(blocks)
    match = syntax.joined(
        protocol,
        *sides[0].positive(),
        *sides[1].positive(),
        _icmp(rule.icmp, family, negated=False),
        _negated_protocol(rule, protocol),
        *sides[0].negative(),
        *sides[1].negative(),
        _icmp(rule.not_icmp, family, negated=True),
        blocks.final_match,
    )
    comments = tuple(rule.annotations)
    verdict = _verdict(context, rule.action, match, log_prefix, comments)
    return [Rule(text, action, notes, origin) for text, action, notes in (*blocks.rules(), *verdict)]


def _verdict(
    context: PolicyContext, action: messages.Action, match: str, log_prefix: str, comments: tuple[str, ...]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    marks, config = context.marks, context.config
    if action == "log":
        limit = f"-m limit --limit {config.log_rate_limit} --limit-burst {config.log_rate_burst}"
        prefix = f"{escape_comment(log_prefix)[:_MAX_LOG_PREFIX]}: "
        match = syntax.joined(match, limit if config.log_rate_limit else "")
        yield match, f'--jump LOG --log-prefix "{prefix}" --log-level 5', comments
    elif action == "deny":
        yield match, syntax.set_mark(marks.drop), comments
        yield syntax.mark_set(marks.drop), f"--jump {config.filter_deny_action}", ()
    else:
        bit = marks.accept if action == "allow" else marks.pass_
        yield match, syntax.set_mark(bit), comments
        yield syntax.mark_set(bit), syntax.RETURN, ()


def _nets_of_family(match: Match, family: Family) -> Match | None:
    """The match with this family's CIDRs only, or None when the rule can match nothing in this family."""
    if any(net in _CATCH_ALL and family_of(net) == family for net in match.not_nets):
        return None
    nets = tuple(net for net in match.nets if family_of(net) == family)
    if match.nets and not nets:
        return None
    not_nets = tuple(net for net in match.not_nets if family_of(net) == family)
    if match.not_nets and not not_nets:
        return None
    if nets == match.nets and not_nets == match.not_nets:
        return match
    return Match(
        nets=nets,
        ip_sets=match.ip_sets,
        ports=match.ports,
        named_ports=match.named_ports,
        services=match.services,
        not_nets=not_nets,
        not_ip_sets=match.not_ip_sets,
        not_ports=match.not_ports,
        not_named_ports=match.not_named_ports,
    )


def _protocol(rule: messages.Rule, family: Family) -> str | None:
    """``-p …``, "" for any, None when it asks for the other family's ICMP, or for the protocol that it excludes."""
    own, other = _ICMP_NAMES[family], _ICMP_NAMES[10 - family]
    protocol = rule.protocol
    if rule.icmp or rule.not_icmp:
        if protocol in other:
            return None
        protocol = protocol or own[0]
    if protocol is None:
        return ""
    return None if protocol == rule.not_protocol else f"-p {protocol}"


def _negated_protocol(rule: messages.Rule, protocol: str) -> str:
    """``! -p …``. Beside a protocol the exclusion of another one says nothing, and iptables takes ``-p`` once only."""
    return "" if rule.not_protocol is None or protocol else f"! -p {rule.not_protocol}"


def _icmp(icmp: messages.ICMP | None, family: Family, *, negated: bool) -> str:
    if icmp is None:
        return ""
    module, option = ("icmp", "--icmp-type") if family == 4 else ("icmp6", "--icmpv6-type")
    value = str(icmp.type) if icmp.code is None else f"{icmp.type}/{icmp.code}"
    return f"-m {module} {'! ' if negated else ''}{option} {value}"


class _Side:
    """One side of a rule: which of its conditions still have to go into the final rule."""

    def __init__(self, match: Match, word: str, family: Family) -> None:
        self._match = match
        self._long = "source" if word == "src" else "destination"
        self._word = word
        self._pair = f"{word},{word}"
        self._family = family
        self._nets = match.nets
        self._not_nets = match.not_nets
        self._port_chunks = tuple(_chunks(match.ports))
        self._named_ports = match.named_ports

    def spill_ports(self, blocks: _MatchBlocks, protocol: str) -> None:
        if len(self._port_chunks) + len(self._named_ports) > 1:
            numeric = (syntax.joined(protocol, self._ports(chunk)) for chunk in self._port_chunks)
            blocks.positive((*numeric, *(self._in_set(name, self._pair) for name in self._named_ports)))
            self._port_chunks = self._named_ports = ()

    def spill_nets(self, blocks: _MatchBlocks) -> None:
        if len(self._nets) > 1:
            blocks.positive(tuple(f"--{self._long} {net}" for net in self._nets))
            self._nets = ()

    def spill_negated_nets(self, blocks: _MatchBlocks) -> None:
        if self._not_nets and len(self._nets) + len(self._not_nets) > 1:
            blocks.negative(tuple(f"--{self._long} {net}" for net in self._not_nets))
            self._not_nets = ()

    def positive(self) -> Iterator[str]:
        for net in self._nets:
            yield f"--{self._long} {net}"
        for name in self._match.ip_sets:
            yield self._in_set(name, self._word)
        for name in self._match.services:
            yield self._in_set(name, self._pair)
        for chunk in self._port_chunks:
            yield self._ports(chunk)
        for name in self._named_ports:
            yield self._in_set(name, self._pair)

    def negative(self) -> Iterator[str]:
        for net in self._not_nets:
            yield f"! --{self._long} {net}"
        for name in self._match.not_ip_sets:
            yield syntax.not_in_set(set_name(self._family, name), self._word)
        for chunk in _chunks(self._match.not_ports):
            yield self._ports(chunk, negation="! ")
        for name in self._match.not_named_ports:
            yield syntax.not_in_set(set_name(self._family, name), self._pair)

    def _in_set(self, set_id: str, directions: str) -> str:
        return syntax.in_set(set_name(self._family, set_id), directions)

    def _ports(self, chunk: tuple[PortRange, ...], negation: str = "") -> str:
        texts = (str(first) if first == last else f"{first}:{last}" for first, last in chunk)
        return f"-m multiport {negation}--{self._long}-ports {','.join(texts)}"


class _MatchBlocks:
    """Rules before the final one; see the module's text."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._rules: list[tuple[str, str]] = []
        self._positive_before = False

    @property
    def final_match(self) -> str:
        return syntax.mark_set(self._marks.scratch0) if self._rules else ""

    def rules(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        return ((match, action, ()) for match, action in self._rules)

    def positive(self, alternatives: tuple[str, ...]) -> None:
        """The packet must match one of ``alternatives``."""
        all_pass, this_passes = self._marks.scratch0, self._marks.scratch1
        first = not self._rules
        if first:
            self._start(0)
        elif self._positive_before:
            self._rules.append(("", syntax.clear_mark(this_passes)))
        bit = all_pass if first else this_passes
        self._rules += ((alternative, syntax.set_mark(bit)) for alternative in alternatives)
        if not first:
            self._rules.append((syntax.mark_clear(this_passes), syntax.clear_mark(all_pass)))
        self._positive_before = True

    def negative(self, alternatives: tuple[str, ...]) -> None:
        """The packet must match none of ``alternatives``."""
        if not self._rules:
            self._start(self._marks.scratch0)
        self._rules += ((alternative, syntax.clear_mark(self._marks.scratch0)) for alternative in alternatives)

    def _start(self, value: int) -> None:
        self._rules.append(("", syntax.set_masked(value, self._marks.scratch0 | self._marks.scratch1)))


def _chunks(ports: tuple[PortRange, ...]) -> Iterator[tuple[PortRange, ...]]:
    """Split a list of ports into pieces that one multiport match holds; a range takes two slots."""
    chunk: list[PortRange] = []
    used = 0
    for port in ports:
        slots = 1 if port.first == port.last else 2
        if used + slots > _PORT_SLOTS:
            yield tuple(chunk)
            chunk, used = [], 0
        chunk.append(port)
        used += slots
    if chunk:
        yield tuple(chunk)
