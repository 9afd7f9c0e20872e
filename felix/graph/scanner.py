"""Rules with selectors → rules with ip set ids, and the sets they need (``felix/calc/rule_scanner.go``).

``selector`` and ``notSelector`` become two matches, not one folded set: an address that several endpoints or network
sets share is then judged as the API says.
"""

from __future__ import annotations

from collections.abc import Iterable

from calipy.felix.graph.ipsets import SetSpec
from calipy.felix.messages import Match, Rule
from calipy.policy import model
from calipy.policy.selector import ALL, Selector, named_port_set_id, service_set_id


class RuleScanner:
    """Translates rules and collects the sets they name, each once, in order of first use."""

    def __init__(self) -> None:
        self._specs: dict[str, SetSpec] = {}

    @property
    def specs(self) -> tuple[SetSpec, ...]:
        """All sets that the rules translated so far refer to."""
        return tuple(self._specs.values())

    def rules(self, rules: Iterable[model.Rule]) -> tuple[Rule, ...]:
        """Translate rules; one that asks for application-layer properties matches nothing here and is left out."""
        return tuple(self._rule(rule) for rule in rules if not rule.application_layer)

    def _rule(self, rule: model.Rule) -> Rule:
        return Rule(
            rule.action,
            rule.ip_version,
            rule.protocol,
            rule.not_protocol,
            self._match(rule.source, rule.protocol, with_ports=False),
            self._match(rule.destination, rule.protocol, with_ports=True),
            rule.icmp,
            rule.not_icmp,
            rule.annotations,
        )

    def _match(self, entity: model.Entity, protocol: str | int | None, *, with_ports: bool) -> Match:
        if entity is model.ANYBODY:
            return _ANY
        nets: list[str] = []
        services: list[str] = []
        only_named_ports = bool(entity.named_ports) and not entity.ports
        if entity.selector is not None and not only_named_ports:  # a named-port set implies the selector
            nets.append(self._selector_set(entity.selector))
        if entity.service is not None:
            namespace, name = entity.service
            found = service_set_id(namespace, name, with_ports=with_ports)
            self._specs.setdefault(found, SetSpec(found, "ip,port" if with_ports else "net", None))
            (services if with_ports else nets).append(found)
        return Match(
            entity.nets,
            tuple(nets),
            entity.ports,
            tuple(self._port_set(entity, protocol, port) for port in entity.named_ports),
            tuple(services),
            entity.not_nets,
            () if entity.not_selector is None else (self._selector_set(entity.not_selector),),
            entity.not_ports,
            tuple(self._port_set(entity, protocol, port) for port in entity.not_named_ports),
        )

    def _selector_set(self, selector: Selector) -> str:
        ident = selector.unique_id()
        self._specs.setdefault(ident, SetSpec(ident, "net", selector))
        return ident

    def _port_set(self, entity: model.Entity, protocol: str | int | None, port: str) -> str:
        selector = entity.selector or ALL
        name = "" if protocol is None else str(protocol)
        ident = named_port_set_id(selector, name, port)
        self._specs.setdefault(ident, SetSpec(ident, "ip,port", selector, name, port))
        return ident


_ANY = Match()
