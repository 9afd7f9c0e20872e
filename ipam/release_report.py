"""Releasing what reports of ``ipam check -o FILE`` call leaked, and nothing that has changed since.

A report is old when it is used. So it counts only for the cluster and, unless forced, for the lock under which it was
made; of several reports only what all of them say; and of that only what is still so now: nobody uses the address, and
handle and sequence number are those of the report.

Source: calicoctl/commands/ipam/release.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from calipy.datastore.keys import HandleKey, path
from calipy.datastore.store import Store
from calipy.errors import CalipyError, ConflictError, InvalidInputError, NotFoundError
from calipy.ipam.allocator import Allocator
from calipy.ipam.audit import Audit
from calipy.ipam.errors import IPAMError
from calipy.ipam.request import ReleaseRequest
from calipy.ipam.snapshot import Snapshot


class RefusedReportError(IPAMError):
    """A report says nothing about this cluster as it is now. Nothing was released."""


class _Allocation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    ip: str
    handle: str = ""
    sequence_number: int | None = None
    in_use: bool = True
    cooling_down: bool = False


class _Handle(msgspec.Struct, frozen=True, kw_only=True):
    id: str = msgspec.field(name="ID")
    revision: str = msgspec.field(name="Revision")
    uid: str | None = msgspec.field(name="UID", default=None)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says, as far as a release goes by it; the format is that of ``calicoctl ipam check -o``."""

    version: str = ""
    cluster_guid: str = msgspec.field(name="clusterGUID")
    locked: bool = msgspec.field(name="datastoreLocked")
    revision: str = msgspec.field(name="clusterInformationRevision")
    allocations: dict[str, list[_Allocation]] = {}
    leaked_handles: list[_Handle] | None = msgspec.field(name="leakedHandles", default=None)


@dataclass(frozen=True, slots=True)
class Leaks:
    """What all reports agree on: addresses with their guards, and handles without an address at their revision."""

    addresses: frozenset[ReleaseRequest]
    handles: frozenset[tuple[str, int]]


@dataclass(slots=True)
class Outcome:
    """Addresses released, handles deleted, and what was left alone, with the reason."""

    addresses: list[str] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_report(text: bytes, *, name: str) -> Report:
    """A report from its JSON. Raises ``InvalidInputError`` naming the file."""
    try:
        report = msgspec.json.decode(text, type=Report)
        _leaks(report)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidInputError(f"is no report of `ipam check`: {error}", field="--from-report", value=name) from error
    return report


def agreed(reports: Mapping[str, Report], cluster: Any, *, version: str, force: bool) -> Leaks:
    """What may be released. Pure.

    Args:
        reports: by name of their files, at least one.
        cluster: the ClusterInformation as it is now, or None.
        version: of this program.
        force: the datastore need not be locked, nor the reports be of this version and lock. The cluster has to be the
            same all the same.

    Raises:
        RefusedReportError: see the rules above.
    """
    guid = cluster.spec.cluster_guid if cluster is not None else ""
    for name, report in reports.items():
        if not guid or report.cluster_guid != guid:
            raise RefusedReportError(
                f"{name} is of cluster {report.cluster_guid or 'unknown'}, this is {guid or 'unknown'}",
                remedy="make a report of this cluster (calipy ipam check -o FILE)",
            )
        if report.version != version and not force:
            raise RefusedReportError(
                f"{name} was made by version {report.version or 'unknown'}, this is {version}",
                remedy="make a new report, or give --force",
            )
    if not force and cluster.spec.datastore_ready is not False:
        raise RefusedReportError(
            "the datastore is not locked: an address may be handed out while it is released",
            remedy="lock it (calipy datastore migrate lock), check, release, and unlock it; or give --force",
        )
    if not force and all(report.revision != str(cluster.revision) for report in reports.values()):
        raise RefusedReportError(
            "no report was made under the present lock of the datastore",
            remedy="make another one (calipy ipam check -o FILE) and give both, or give --force",
        )
    said = [_leaks(report) for report in reports.values()]
    return Leaks(
        frozenset.intersection(*(one.addresses for one in said)), frozenset.intersection(*(one.handles for one in said))
    )


def _leaks(report: Report) -> Leaks:
    """Addresses without a handle are left out: nobody can tell later whether they are still the same owner's."""
    return Leaks(
        frozenset(
            ReleaseRequest(entry.ip, entry.handle, entry.sequence_number)
            for entries in report.allocations.values()
            for entry in entries
            if entry.handle and not entry.in_use and not entry.cooling_down
        ),
        frozenset((handle.id, int(handle.revision)) for handle in report.leaked_handles or ()),
    )


async def release(store: Store, allocator: Allocator, leaks: Leaks, picture: Snapshot, present: Audit) -> Outcome:
    """Release what is still leaked. A second run finds nothing more to do.

    Args:
        store: the datastore.
        allocator: any.
        leaks: what the reports agree on.
        picture: the datastore as it is now.
        present: what a check of it finds.
    """
    outcome = Outcome()
    leaked = {
        ReleaseRequest(
            entry.address, entry.attribute.handle_id, entry.block.sequence_number_for_allocation.get(entry.ordinal)
        )
        for entry in present.allocated
        if entry.attribute is not None and entry.leaked
    }
    for request in sorted(leaks.addresses, key=lambda request: request.address):
        users = present.users.get(request.address)
        if users:
            outcome.skipped.append((request.address, f"used by {', '.join(users)}"))
        elif request not in leaked:
            outcome.skipped.append((request.address, "released or handed out anew since, or of a Service"))
        elif picture.undecodable:
            unreadable = ", ".join(picture.undecodable)
            outcome.skipped.append((request.address, f"its user may be what cannot be read: {unreadable}"))
        else:
            await _release_one(allocator, request, outcome)
    await _delete_handles(store, leaks.handles, outcome)
    return outcome


async def _release_one(allocator: Allocator, request: ReleaseRequest, outcome: Outcome) -> None:
    try:
        result = await allocator.release_ips([request])
    except CalipyError as error:
        outcome.skipped.append((request.address, str(error)))
        return
    if result.unallocated:
        outcome.skipped.append((request.address, "released since"))
    else:
        outcome.addresses.append(request.address)


async def _delete_handles(store: Store, handles: frozenset[tuple[str, int]], outcome: Outcome) -> None:
    for handle_id, revision in sorted(handles):
        try:
            await store.delete(path(HandleKey(handle_id)), revision=revision)
        except (ConflictError, NotFoundError):
            outcome.skipped.append((f"handle {handle_id}", "changed or deleted since"))
        else:
            outcome.handles.append(handle_id)
