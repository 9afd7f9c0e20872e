"""Set-up of structlog: one JSON object (or one readable line on a terminal) per event, on stderr."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
"""Calico's level names (any case) and what they mean to us."""


class Sink:
    """Standard error, or what is left of it: a daemon whose log nobody reads any more must work on.

    Attributes:
        failures: writes that did not succeed.
    """

    def __init__(self) -> None:
        self.failures = 0

    def write(self, text: str) -> None:
        """Write, or count the failure."""
        try:
            sys.stderr.write(text)
        except (OSError, ValueError) as error:
            self._failed(error)

    def flush(self) -> None:
        """Flush, or count the failure."""
        try:
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if isinstance(error, BrokenPipeError):
            # Nobody will ever read it. What is left in buffers would fail again at exit, and turn its status into 120.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)


SINK = Sink()
"""Where this process logs."""


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Configure logging for this process, once, from the front door only.

    Args:
        level: one of ``LEVELS``, any case; unknown words mean ``info``.
        json: True for JSON lines, False for readable lines; None picks readable lines on a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(level.lower(), logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", SINK)),
        cache_logger_on_first_use=False,
    )


def get(component: str) -> FilteringBoundLogger:
    """A logger whose events carry ``component``. Never log secrets, tokens or whole inputs."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=component))
