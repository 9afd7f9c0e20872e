"""Best path selection, with the reason kept. Pure.

The order of RFC 4271 9.1.2, with RFC 4456's two additions and RFC 4724's rule about stale paths. Every step removes
paths from the whole set, so the outcome cannot depend on the order of arrival (comparing pairs could: MED counts only
between paths of one neighbour AS, which is no total order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from calipy.bgp.path import DEFAULT_LOCAL_PREFERENCE, ORIGIN_RANK, Path
from calipy.net import IPAddress

MAX_MULTIPATH: Final = 16
"""Most next hops of one multipath route."""


@dataclass(frozen=True, slots=True)
class Best:
    """Outcome for one prefix.

    Attributes:
        path: the winner.
        reason: the step that decided, in words, e.g. ``higher LOCAL_PREF``.
        multipath: winner first, then the paths equal to it up to the next hop's metric with other next hops.
        candidates: how many usable paths there were.
    """

    path: Path
    reason: str
    multipath: tuple[Path, ...]
    candidates: int


Metric = Callable[[IPAddress], int | None]
"""Cost of a next hop in the kernel's table, None if it cannot be reached."""


def _local_preference(path: Path) -> int:
    value = path.attributes.local_preference
    return DEFAULT_LOCAL_PREFERENCE if value is None else value


def _lowest_med(paths: list[Path]) -> list[Path]:
    lowest: dict[int, int] = {}
    for path in paths:
        neighbour, med = path.attributes.neighbour_as, path.attributes.med or 0
        lowest[neighbour] = min(med, lowest.get(neighbour, med))
    return [path for path in paths if (path.attributes.med or 0) == lowest[path.attributes.neighbour_as]]


def _least(rank: Callable[[Path], object]) -> Callable[[list[Path]], list[Path]]:
    def keep(paths: list[Path]) -> list[Path]:
        ranks = [rank(path) for path in paths]
        least = min(ranks)  # type: ignore[type-var]  # each step's ranks are of one ordered type
        return [path for path, own in zip(paths, ranks, strict=True) if own == least]

    return keep


def _identifier(path: Path) -> int:
    return int(path.attributes.originator_id or path.peer.router_id)


_BEFORE_METRIC: Final = (
    ("fresh over stale", _least(lambda path: path.stale)),
    ("higher LOCAL_PREF", _least(lambda path: -_local_preference(path))),
    ("shorter AS_PATH", _least(lambda path: path.attributes.as_path_length)),
    ("lower ORIGIN", _least(lambda path: ORIGIN_RANK[path.attributes.origin])),
    ("lower MED", _lowest_med),
    ("eBGP over iBGP", _least(lambda path: not path.peer.external)),
)
_AFTER_METRIC: Final = (
    ("shorter CLUSTER_LIST", _least(lambda path: len(path.attributes.cluster_list))),
    ("lower router ID", _least(_identifier)),
    ("lower peer address", _least(lambda path: (path.peer.address.version, int(path.peer.address)))),
    ("lower path ID", _least(lambda path: path.path_id)),
)


def decide(paths: Iterable[Path], metric: Metric) -> Best | None:
    """The best path to one prefix, or None if no path is usable. O(number of paths to that prefix).

    Args:
        paths: all candidates of one prefix; rejected ones are passed over.
        metric: cost of reaching a next hop, None if it is unreachable (RFC 4271 9.1.2.1 leaves such paths out).
    """
    left: list[Path] = []
    costs: dict[IPAddress, int] = {}
    for path in paths:
        cost = None if path.rejected else metric(path.attributes.next_hop)
        if cost is not None:
            costs[path.attributes.next_hop] = cost
            left.append(path)
    if not left:
        return None
    candidates = len(left)
    reason = "only path"
    cheapest = ("nearer next hop", _least(lambda path: costs[path.attributes.next_hop]))
    for name, keep in (*_BEFORE_METRIC, cheapest):
        if len(left) == 1:
            break
        left, reason = _narrow(left, keep, name, reason)
    equal = left
    for name, keep in _AFTER_METRIC:
        if len(left) == 1:
            break
        left, reason = _narrow(left, keep, name, reason)
    return Best(left[0], reason, _distinct(left[0], equal), candidates)


def _narrow(
    paths: list[Path], keep: Callable[[list[Path]], list[Path]], name: str, reason: str
) -> tuple[list[Path], str]:
    kept = keep(paths)
    return kept, name if len(kept) < len(paths) else reason


def _distinct(best: Path, equal: list[Path]) -> tuple[Path, ...]:
    """The multipath set: the best path, then one path for each other next hop, in order of address."""
    if len(equal) == 1:
        return (best,)
    by_next_hop: dict[IPAddress, Path] = {}
    for path in sorted(equal, key=lambda path: (int(path.peer.address), path.path_id)):
        by_next_hop.setdefault(path.attributes.next_hop, path)
    by_next_hop.pop(best.attributes.next_hop, None)
    others = sorted(by_next_hop.values(), key=lambda path: int(path.attributes.next_hop))
    return (best, *others[: MAX_MULTIPATH - 1])
