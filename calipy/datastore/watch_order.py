"""Puts what one watch stream says about several key ranges into one order, and knows from where it may be resumed.

Pure. etcd promises order within one range only, and three things must not be mistaken for a promise:

* the header of a response with events carries the store's revision, ahead of the events of a backlog;
* before 3.4.25 and 3.5.8 the answer to a progress request could overtake events (etcd #15220);
* events of one transaction come once for each range it touched.

So no single answer is believed. Events are handed on up to an answer that was followed by another one with nothing
belated between: what the first could have overtaken has arrived by the second. And a silent range counts as seen, for
resuming, only up to an answer that was followed by another one much later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from calipy.datastore.store import Event, WatchBatch

SETTLED = 1.0
"""Seconds between two progress answers after which the earlier one is believed."""

HOLD = 1.0
"""Seconds that events wait for the other ranges. Longer than that only when the server is itself still catching up."""


class WatchOrder:
    """Collects events and progress of ``ranges`` watched from ``start_revision`` on; gives batches.

    With one range batches are given at once. With several they wait for the next two progress answers (``waiting`` says
    that one should be asked for), then come sorted by revision. Each call is O(events given or taken).
    """

    def __init__(self, ranges: int, start_revision: int, *, settled: float = SETTLED) -> None:
        self._seen = [start_revision - 1] * ranges
        self._told = start_revision - 1
        self._settled = settled
        self._answers: deque[tuple[float, int]] = deque()
        self._answer = 0
        self._belated = False
        self._pending: list[Event] = []
        self._first_pending = 0
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether events are held back."""
        return bool(self._pending)

    def events(self, index: int, events: Sequence[Event], now: float) -> WatchBatch | None:
        """Whole revisions of one range, in order; what may be handed on now."""
        if not events:
            return None
        self._seen[index] = max(self._seen[index], events[-1].revision)
        if len(self._seen) == 1:
            return self._batch(tuple(events))
        if not self._pending:
            self._since, self._first_pending = now, events[0].revision
        self._first_pending = min(self._first_pending, events[0].revision)
        self._belated = self._belated or events[0].revision <= self._answer
        self._pending.extend(events)
        return self._release(now)

    def progress(self, revision: int, now: float) -> WatchBatch | None:
        """The server answered that it is at ``revision``; what may be handed on now."""
        believed = 0
        while self._answers and now - self._answers[0][0] >= self._settled:
            believed = self._answers.popleft()[1]
        self._answers.append((now, revision))
        self._seen = [max(seen, believed) for seen in self._seen]
        believed = 0 if self._belated else self._answer
        self._answer, self._belated = revision, False
        if self._pending:
            return self._release(now, believed)
        return self._batch(()) if min(self._seen) > self._told else None

    def range_progress(self, index: int, revision: int) -> WatchBatch | None:
        """The server told, in order with the events, how far one range has come; the new place to resume from."""
        self._seen[index] = max(self._seen[index], revision)
        return self._batch(()) if not self._pending and min(self._seen) > self._told else None

    def _release(self, now: float, answered: int = 0) -> WatchBatch | None:
        limit = max(answered, min(self._seen))
        if now - self._since > HOLD:
            limit = max(self._seen)
        if limit < self._first_pending:
            return None
        ready = [event for event in self._pending if event.revision <= limit]
        self._pending = [event for event in self._pending if event.revision > limit]
        self._first_pending = min((event.revision for event in self._pending), default=0)
        self._since = now
        ready.sort(key=lambda event: event.revision)
        return self._batch(tuple(ready))

    def _batch(self, events: tuple[Event, ...]) -> WatchBatch:
        told = min(self._seen)
        if self._pending:
            # Of events held back nothing was told, so the place to resume from lies before them.
            told = min(told, self._first_pending - 1)
        self._told = max(self._told, told)
        return WatchBatch(events, self._told)
