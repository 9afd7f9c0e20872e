"""How the selector fields of policies and rules combine into the one selector that is matched against endpoints.

Namespace and service-account labels reach endpoints through profiles, with the prefixes ``pcns.`` and ``pcsa.``;
the combination follows ``libcalico-go/lib/backend/syncersv1/updateprocessors``, so that ip set ids come out the same.
"""

from __future__ import annotations

from typing import Final

from calipy.datastore.resources import EntityRule, ServiceAccountMatch
from calipy.errors import InvalidInputError
from calipy.policy.selector import ALL, GLOBAL, Selector, conjunction, parse

NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
SERVICE_ACCOUNT_LABEL: Final = "projectcalico.org/serviceaccount"
NAMESPACE_PREFIX: Final = "pcns."
SERVICE_ACCOUNT_PREFIX: Final = "pcsa."

IN_A_NAMESPACE: Final = parse(f"has({NAMESPACE_LABEL})")
IN_NO_NAMESPACE: Final = parse(f"!has({NAMESPACE_LABEL})")
WITH_ACCOUNT: Final = parse(f"has({SERVICE_ACCOUNT_LABEL})")


def parse_field(text: str, field: str) -> Selector:
    """Parse a selector that stands in ``field`` of an object.

    Raises:
        InvalidInputError: names the field, the text and the place of the fault.
    """
    try:
        return parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(error.args[0], field=field, remedy=error.remedy) from None


def policy_selector(
    selector: str, *, namespace: str = "", namespace_selector: str = "", service_account_selector: str = ""
) -> Selector:
    """Which endpoints a policy applies to.

    Args:
        selector: the policy's own; "" is everything.
        namespace: of a namespaced policy, "" for a global one.
        namespace_selector: of a global policy, over labels of namespaces. When present, ``all()`` anywhere in the
            combination means "in any namespace": host endpoints drop out.
        service_account_selector: over labels of service accounts, with the like effect on ``all()``.

    Raises:
        InvalidInputError: one of them is not a selector.
    """
    combined = parse_field(selector, "spec.selector") if selector else None
    if namespace:
        combined = _and(combined, _equals(NAMESPACE_LABEL, namespace))
    if namespace_selector:
        prefixed = _prefixed(namespace_selector, NAMESPACE_PREFIX, "spec.namespaceSelector")
        combined = _and(combined, prefixed).replace(ALL, IN_A_NAMESPACE)
    if service_account_selector:
        prefixed = _prefixed(service_account_selector, SERVICE_ACCOUNT_PREFIX, "spec.serviceAccountSelector")
        combined = _and(combined, prefixed).replace(ALL, WITH_ACCOUNT)
    return ALL if combined is None else combined


def entity_selector(entity: EntityRule, namespace: str, field: str) -> Selector | None:
    """Which endpoints one side of a rule means, apart from ``notSelector``; None when it does not ask for any.

    In a namespaced policy every use of a selector, a service account or even only ``notSelector`` means endpoints of
    that namespace, unless ``namespaceSelector`` says which others.

    Raises:
        InvalidInputError: a part is not a selector; ``field`` (``spec.ingress[0].source``) is named.
    """
    combined = _accounts(entity.service_accounts, f"{field}.serviceAccounts") if entity.service_accounts else None
    if entity.selector:
        own = parse_field(entity.selector, f"{field}.selector")
        combined = own if combined is None else conjunction(combined, own)
    if entity.namespace_selector:
        spaces = _prefixed(entity.namespace_selector, NAMESPACE_PREFIX, f"{field}.namespaceSelector")
        spaces = spaces.replace(ALL, IN_A_NAMESPACE).replace(GLOBAL, IN_NO_NAMESPACE)
        return spaces if combined is None else conjunction(spaces, combined)
    if namespace and (combined is not None or entity.not_selector):
        spaces = _equals(NAMESPACE_LABEL, namespace)
        return spaces if combined is None else conjunction(spaces, combined)
    return combined


def _accounts(match: ServiceAccountMatch, field: str) -> Selector | None:
    found = _prefixed(match.selector, SERVICE_ACCOUNT_PREFIX, f"{field}.selector") if match.selector else None
    if not match.names:
        return found
    quoted = ", ".join(f"'{name}'" for name in match.names)
    names = parse_field(f"{SERVICE_ACCOUNT_LABEL} in {{{quoted}}}", f"{field}.names")
    return names if found is None else conjunction(found, names)


def _prefixed(text: str, prefix: str, field: str) -> Selector:
    return parse_field(text, field).rename_labels(prefix.__add__)


def _equals(label: str, value: str) -> Selector:
    return parse(f"{label} == '{value}'")


def _and(first: Selector | None, second: Selector) -> Selector:
    return second if first is None else conjunction(first, second)
