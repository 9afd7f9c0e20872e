"""Deadlines of periodic work, with jitter, so that a cluster does not work in step. Pure: time is an argument."""

from __future__ import annotations

import random
from typing import Final

_JITTER: Final = 0.1


class Timer:
    """Something that is due every so often."""

    def __init__(self, interval: float, now: float) -> None:
        """Due for the first time one interval from ``now``; an interval of 0 means never. Seconds."""
        self.interval = interval
        self.deadline: float | None = None
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin a new interval, give or take a tenth."""
        spread = 1 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - not a secret
        self.deadline = now + self.interval * spread if self.interval else None

    def no_later_than(self, interval: float, now: float) -> None:
        """Be due after ``interval`` seconds, and every so often from then on, unless it is due earlier anyway."""
        if interval and (self.deadline is None or self.deadline > now + interval * (1 + _JITTER)):
            self.interval = interval
            self.restart(now)

    def take(self, now: float) -> bool:
        """Whether it is due; if so the next interval begins."""
        if self.deadline is None or self.deadline > now:
            return False
        self.restart(now)
        return True


class Backoff:
    """Pauses between attempts of something that fails: doubling from ``first`` to ``longest`` seconds."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0
        self.deadline: float | None = None

    def failed(self, now: float) -> None:
        """Once more in vain; ``deadline`` is when to try again."""
        pause = min(self._first * 2**self._failures, self._longest)
        self._failures = min(self._failures + 1, 32)
        self.deadline = now + pause * (1 + random.uniform(-_JITTER, _JITTER))  # noqa: S311 - not a secret

    def due(self, now: float) -> bool:
        """Whether it is time for an attempt: nothing has failed, or the pause is over."""
        return self.deadline is None or self.deadline <= now

    def succeeded(self) -> None:
        """It worked: nothing to try again."""
        self._failures = 0
        self.deadline = None


def earliest(*deadlines: float | None) -> float | None:
    """The first of several deadlines, None if there is none."""
    return min((deadline for deadline in deadlines if deadline is not None), default=None)
