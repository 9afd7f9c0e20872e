"""The stores that must behave alike."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from calipy.datastore import etcd_watch
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.memory import MemoryStore
from calipy.datastore.store import Store


@pytest.fixture(params=["span", "ranges"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to watch several prefixes: one range that spans them, and a range each, as when the span is refused."""
    if request.param == "ranges":
        monkeypatch.setattr(etcd_watch, "ways", lambda ranges: [list(ranges)])
    return str(request.param)


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store of either kind. The etcd one reads small pages, so that paging is always exercised."""
    made: Store
    made = MemoryStore() if request.param == "memory" else EtcdStore([request.getfixturevalue("etcd").url], page=50)
    yield made
    await made.close()
