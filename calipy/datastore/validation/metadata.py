"""Names, labels and annotations."""

from __future__ import annotations

import re
from typing import Any, Final

from calipy.datastore.defaults import NAMESPACE_LABEL
from calipy.datastore.kinds.meta import Resource
from calipy.datastore.policynames import NAMED_POLICIES
from calipy.datastore.validation.fields import dns_label, fail, is_subdomain, subdomain

_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_POLICY: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)?")
_COPIED_POLICY: Final = re.compile(r"(knp|ossg)\.default\.(.+)")
_ONLY_DEFAULT: Final = frozenset({"ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration"})
_ANNOTATION_LIMIT: Final = 256 * 1024


def check(resource: Resource[Any, Any]) -> None:
    """Refuse bad names, labels and annotations."""
    _check_name(resource)
    for name, value in resource.metadata.labels.items():
        # Namespaces may have any name, and endpoints tell theirs in a label.
        if not (resource.kind == "WorkloadEndpoint" and name == NAMESPACE_LABEL):
            check_label(name, value, f"metadata.labels[{name}]")
    if resource.kind in {"NetworkSet", "GlobalNetworkSet"} and NAMESPACE_LABEL in resource.metadata.labels:
        fail("is Calico's own", f"metadata.labels[{NAMESPACE_LABEL}]", "", "remove the label")
    size = 0
    for name, value in resource.metadata.annotations.items():
        check_qualified_name(name.lower(), f"metadata.annotations[{name}]")
        size += len(name.encode()) + len(value.encode())
    if size > _ANNOTATION_LIMIT:
        fail(f"must not exceed {_ANNOTATION_LIMIT} bytes in all", "metadata.annotations", size)


def _check_name(resource: Resource[Any, Any]) -> None:
    name = resource.metadata.name
    field = "metadata.name"
    if not name:
        fail("must be given", field, name)
    if resource.kind in NAMED_POLICIES:
        _check_policy_name(resource.kind, name)
    elif resource.kind == "Tier":
        dns_label(name, field)
    else:
        if len(name) > 253:
            fail("must have at most 253 characters", field, name)
        subdomain(name, field)
    if resource.kind in _ONLY_DEFAULT and name != "default":
        fail("there is only one object of this kind", field, name, "name it default")


def _check_policy_name(kind: str, name: str) -> None:
    if _POLICY.fullmatch(name) and len(name) <= 253:
        return
    copied = _COPIED_POLICY.fullmatch(name)
    if kind in {"NetworkPolicy", "StagedNetworkPolicy"} and copied and is_subdomain(copied[2]):
        return
    fail(
        "must be a lower-case DNS label, or two joined by a dot", "metadata.name", name, "name it policy or tier.policy"
    )


def check_qualified_name(key: str, field: str) -> None:
    """A Kubernetes label key: ``name`` or ``prefix/name``."""
    prefix, slash, name = key.rpartition("/")
    if (slash and not is_subdomain(prefix)) or len(name) > 63 or not _LABEL_NAME.fullmatch(name):
        fail(
            "must be a name of at most 63 letters, digits, '-', '_', '.', perhaps behind a DNS prefix and '/'",
            field,
            key,
        )


def check_label(key: str, value: str, field: str) -> None:
    """A Kubernetes label."""
    check_qualified_name(key, field)
    if value and (len(value) > 63 or not _LABEL_NAME.fullmatch(value)):
        fail("must be at most 63 letters, digits, '-', '_', '.', with letters or digits at both ends", field, value)
