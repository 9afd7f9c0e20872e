"""Prometheus metrics: counters, gauges and summaries, and their text form (exposition format 0.0.4).

Who counts something makes its instruments when it is imported, and counts; nobody has to pass them around:

    _RESTORES = metrics.REGISTRY.counter("felix_iptables_restore_calls", "Number of iptables-restore calls.")
    _CHAINS = metrics.REGISTRY.gauges("felix_iptables_chains", "Number of active chains.", "ip_version", "table")

    _RESTORES.inc()
    _CHAINS.labels("4", "filter").set(12)

What is known anyway, such as the length of a list, need not be followed: a function given to ``before_exposing`` sets
its gauges when somebody asks. Names are Calico's where the meaning is the same. Its counters lack the suffix
``_total``, with which prometheus_client insists on ending them, and its summaries have quantiles, which
prometheus_client lacks; hence this module.

Pure: no clock, no I/O. Not for use from several threads.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES: Final = (0.5, 0.9, 0.99)
RECENT: Final = 500
"""Observations that the quantiles of a summary are taken from."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})

_Sample = tuple[str, tuple[tuple[str, str], ...], float]
"""Suffix of the name, additional labels, value."""


class Instrument(Protocol):
    """What can be exposed."""

    def samples(self) -> Iterator[_Sample]: ...


class Counter:
    """A number that only grows, from 0 when the process starts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``, which is not negative. About 50 ns."""
        self.value += amount

    def samples(self) -> Iterator[_Sample]:
        yield "", (), self.value


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def samples(self) -> Iterator[_Sample]:
        yield "", (), self.value


class Summary:
    """How many observations there were, their sum, and the quantiles of the last ``RECENT`` of them."""

    __slots__ = ("_recent", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def observe(self, value: float) -> None:
        """Note one observation. About 100 ns."""
        self.count += 1
        self.total += value
        self._recent.append(value)

    def quantile(self, share: float) -> float:
        """The value that ``share`` (0..1) of the recent observations do not exceed; NaN without observations."""
        if not self._recent:
            return math.nan
        return sorted(self._recent)[max(math.ceil(share * len(self._recent)) - 1, 0)]

    def samples(self) -> Iterator[_Sample]:
        for share in QUANTILES:
            yield "", (("quantile", _number(share)),), self.quantile(share)
        yield "_sum", (), self.total
        yield "_count", (), self.count


_I = TypeVar("_I", Counter, Gauge, Summary)


class Labelled(Generic[_I]):
    """Instruments of one name that differ in the values of their labels."""

    def __init__(self, make: Callable[[], _I], names: tuple[str, ...]) -> None:
        self._make: Callable[[], _I] = make
        self._names = names
        self._children: dict[tuple[str, ...], _I] = {}

    def labels(self, *values: str) -> _I:
        """The instrument of these label values, in the order of their names; made on first use.

        Hot code keeps what it gets. The values of a label must be few: each one is kept for good, until ``clear``.
        """
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._names):
                raise ValueError(f"expected values for {self._names}, not {values}")
            child = self._children[values] = self._make()
        return child

    def clear(self) -> None:
        """Forget all, for gauges that are about to be set anew."""
        self._children.clear()

    def samples(self) -> Iterator[_Sample]:
        for values, child in self._children.items():
            pairs = tuple(zip(self._names, values, strict=True))
            for suffix, more, value in child.samples():
                yield suffix, pairs + more, value


class Registry:
    """All instruments of a process, by name."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, str, Instrument]] = {}
        self._preparations: list[Callable[[], None]] = []

    def counter(self, name: str, text: str) -> Counter:
        """A new counter; ``text`` says what it counts, for people."""
        return self._add(name, "counter", text, Counter())

    def gauge(self, name: str, text: str) -> Gauge:
        """A new gauge."""
        return self._add(name, "gauge", text, Gauge())

    def summary(self, name: str, text: str) -> Summary:
        """A new summary."""
        return self._add(name, "summary", text, Summary())

    def counters(self, name: str, text: str, *labels: str) -> Labelled[Counter]:
        """New counters that differ in these labels."""
        return self._add(name, "counter", text, Labelled(Counter, _checked(labels)))

    def gauges(self, name: str, text: str, *labels: str) -> Labelled[Gauge]:
        """New gauges that differ in these labels."""
        return self._add(name, "gauge", text, Labelled(Gauge, _checked(labels)))

    def summaries(self, name: str, text: str, *labels: str) -> Labelled[Summary]:
        """New summaries that differ in these labels."""
        return self._add(name, "summary", text, Labelled(Summary, _checked(labels)))

    def before_exposing(self, prepare: Callable[[], None]) -> None:
        """Have ``prepare`` called before each ``expose``, to set gauges that nobody follows. It must not fail."""
        self._preparations.append(prepare)

    def expose(self) -> str:
        """All values as text, in order of their names."""
        for prepare in self._preparations:
            prepare()
        return "".join(_lines(name, *self._entries[name]) for name in sorted(self._entries))

    def _add(self, name: str, kind: str, text: str, instrument: _X) -> _X:
        _checked((name,))
        if name in self._entries:
            raise ValueError(f"there is a metric {name} already")
        self._entries[name] = (kind, text, instrument)
        return instrument


_X = TypeVar("_X", bound=Instrument)

REGISTRY: Final = Registry()
"""The one of this process."""


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a metric or label: {name!r}")
    return names


def _lines(name: str, kind: str, text: str, instrument: Instrument) -> str:
    samples = [f"{name}{suffix}{_labels(labels)} {_number(value)}\n" for suffix, labels, value in instrument.samples()]
    if not samples:
        return ""
    return f"# HELP {name} {text.translate(_HELP_ESCAPES)}\n# TYPE {name} {kind}\n" + "".join(samples)


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
