"""When to look at the kernel again without being asked, and what came out of it.

Cheap questions are asked every few seconds (has anybody written rules, do the sets have their sizes); only an answer
that surprises, or a refresh that is due, makes us read everything. That runs beside the applying of changes, so that no
change has to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane import ipsets, iptables
from calipy.felix.delta import Difference
from calipy.felix.timers import Timer, earliest

_R = TypeVar("_R")
_GENERATION_POLL: Final = 2.0
_SET_SIZES_POLL: Final = 4.5
_PARAMETERS_POLL: Final = 4.5
_VERIFY_AFTER: Final = 0.2
_LONGEST_POST_WRITE_CHECK: Final = 3600.0


class Upkeep:
    """Timers and readings of one pair of edges. Calls come from one task, between its applies."""

    def __init__(
        self,
        config: FelixConfig,
        rules: iptables.IPTables,
        sets: ipsets.IPSets,
        *,
        now: float,
        wake: Callable[[], None],
    ) -> None:
        """Begin all periods.

        Args:
            config: their lengths.
            rules: the iptables edge.
            sets: the ip set edge.
            now: seconds.
            wake: called when a reading has ended and ``take`` has something to tell.
        """
        self._config = config
        self._rules = rules
        self._sets = sets
        self._wake = wake
        self._legacy = rules.backend == "legacy"
        self._generation = Timer(0 if self._legacy else _GENERATION_POLL, now)
        self._all_rules = Timer(config.iptables_refresh, now)
        self._post_write = Timer(0, now)
        self._set_sizes = Timer(_SET_SIZES_POLL, now)
        self._parameters = Timer(_PARAMETERS_POLL, now)
        self._all_sets = Timer(config.ipsets_refresh, now)
        self._all_routes = Timer(config.route_refresh, now)
        self._rule_reading: asyncio.Task[iptables.Reading] | None = None
        self._set_reading: asyncio.Task[ipsets.Reading] | None = None

    def close(self) -> None:
        """Drop readings under way."""
        for reading in (self._rule_reading, self._set_reading):
            if reading is not None:
                reading.cancel()

    @property
    def deadline(self) -> float | None:
        """When ``take`` is to be called next, if nothing wakes it before."""
        often = (self._generation, self._post_write, self._set_sizes, self._parameters)
        timers = (*often, self._all_rules, self._all_sets, self._all_routes)
        return earliest(*(timer.deadline for timer in timers))

    def routes_due(self, now: float) -> bool:
        """Whether it is time to look at routes and interfaces again."""
        return self._all_routes.take(now)

    def parameters_due(self, now: float) -> bool:
        """Whether it is time for a glance at the interfaces' sysctls."""
        return self._parameters.take(now)

    def wrote(self, now: float) -> None:
        """Rules were written: see that they are read back in time if they have not been."""
        if self._rules.unverified:
            self._post_write.no_later_than(self._config.post_write_check if self._legacy else _VERIFY_AFTER, now)

    def take(self, now: float) -> tuple[list[Difference], list[str]]:
        """Begin the readings that are due, and collect those that have ended.

        Returns:
            Drift, which is dirty in its table now; and failures.
        """
        errors: list[str] = []
        drift: list[Difference] = []
        if self._rule_reading is not None and self._rule_reading.done():
            try:
                drift += self._rules.adopt(self._rule_reading.result())
            except KernelError as error:
                errors.append(str(error))
            self._rule_reading = None
        if self._set_reading is not None and self._set_reading.done():
            try:
                drift += self._sets.adopt(self._set_reading.result())
            except KernelError as error:
                errors.append(str(error))
            self._set_reading = None
        if self._rule_reading is None and self._rules_due(now):
            self._rule_reading = self._begin(self._rules.begin_reading())
        if self._set_reading is None and self._sets_due(now):
            self._set_reading = self._begin(self._sets.begin_reading())
        return drift, errors

    def _rules_due(self, now: float) -> bool:
        due = self._all_rules.take(now)
        if self._generation.take(now):
            due = self._rules.others_wrote() or due
        if self._post_write.take(now):
            due = True
            # nf_tables says when others write; with the legacy backend only looking again helps, ever less often.
            longer = self._post_write.interval * 2 if self._legacy else 0
            self._post_write.interval = longer if longer < _LONGEST_POST_WRITE_CHECK else 0
            self._post_write.restart(now)
        return due

    def _sets_due(self, now: float) -> bool:
        sizes_differ = self._set_sizes.take(now) and self._sets.others_wrote()
        return self._all_sets.take(now) or sizes_differ

    def _begin(self, reading: Coroutine[Any, Any, _R]) -> asyncio.Task[_R]:
        task = asyncio.get_running_loop().create_task(reading)
        task.add_done_callback(lambda _: self._wake())
        return task
