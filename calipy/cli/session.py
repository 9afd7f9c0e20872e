"""What commands work with: a client on the configured datastore, or the one a caller has put in place.

A command is synchronous; ``Session.run`` carries its asynchronous part. The session of a process opens and closes a
store for each command; a test puts its own into click's context (``obj``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from calipy import clock
from calipy.datastore.client import Client
from calipy.errors import InvalidInputError, UnavailableError

T = TypeVar("T")

WAIT_STEP = 0.5
"""Seconds between two looks at a datastore that does not answer."""

TARGET_RELEASE = (3, 32)
"""First release of Calico whose layout (names of policies) is ours."""


class Session:
    """Runs asynchronous work against the datastore that files and environment name.

    Args:
        config_file: configuration file given by the user, or None for the usual places.
    """

    def __init__(self, config_file: str | None = None) -> None:
        self._config_file = config_file

    def run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Do ``work`` with a client and return what it returns. Blocks."""
        from calipy.datastore.connect import EtcdConfig, connect  # noqa: PLC0415 - loads gRPC

        path = Path(self._config_file) if self._config_file else None
        config = EtcdConfig.from_environment(os.environ, config_file=path)

        async def main() -> T:
            store = connect(config)
            try:
                return await work(open_client(store))
            finally:
                await store.close()

        return asyncio.run(main())


def open_client(store: Any, *, settle: float = 0.5) -> Client:
    """A client whose deletions of pools and nodes reach IPAM."""
    from calipy.ipam.allocator import Allocator  # noqa: PLC0415 - only some commands need it

    return Client(store, addresses=Allocator(store, ""), settle=settle)


def current(config_file: str | None = None) -> Session:
    """The session of this command."""
    context = click.get_current_context(silent=True)
    if context is not None and isinstance(context.obj, Session):
        return context.obj
    return Session(config_file)


async def wait_for_datastore(client: Client, seconds: float) -> None:
    """Return once the datastore answers, at the latest after ``seconds``; refused credentials end it at once.

    Raises:
        UnavailableError: it still does not answer.
    """
    deadline = clock.monotonic() + seconds
    while True:
        try:
            await client.get("ClusterInformation", "default")
        except UnavailableError:
            if clock.monotonic() >= deadline:
                raise
            await asyncio.sleep(WAIT_STEP)
        else:
            return


async def check_release(client: Client, *, allow_mismatch: bool) -> None:
    """Refuse to work on a store of a release whose layout is not ours.

    Raises:
        InvalidInputError: ``ClusterInformation/default`` names an older release.
    """
    if allow_mismatch:
        return
    information = await client.get("ClusterInformation", "default")
    version = information.spec.calico_version if information is not None else ""
    parts = version.removeprefix("v").split("-")[0].split(".")[:2]
    if len(parts) == 2 and all(part.isdigit() for part in parts) and tuple(map(int, parts)) < TARGET_RELEASE:
        raise InvalidInputError(
            "the datastore belongs to a release that names policies differently",
            field="ClusterInformation(default).spec.calicoVersion",
            value=version,
            remedy="use --allow-version-mismatch if you know what you do",
        )
