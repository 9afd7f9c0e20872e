"""What the agent says of Felix to those who ask for its health."""

from __future__ import annotations

import pytest

from calipy.datastore.connect import EtcdConfig
from calipy.felix.daemon import FelixStatus
from calipy.node.agent import Agent
from calipy.node.settings import NodeSettings


@pytest.mark.parametrize(("busy", "live"), [(0.0, True), (89.0, True), (91.0, False)])
async def test_felix_that_does_not_get_on_is_dead(busy: float, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle that has been under way for longer than the watchdog allows makes the agent neither live nor ready."""
    agent = Agent(NodeSettings("n1"), EtcdConfig.from_variables({"ETCD_ENDPOINTS": "http://127.0.0.1:1"}))
    status = FelixStatus(
        in_sync=True, datastore="connected", ready=True, reasons=(), backend="nft", applied_at=1.0, apply_seconds=0.1,
        errors=(), busy_seconds=busy,
    )  # fmt: skip
    monkeypatch.setattr(agent.felix, "status", lambda: status)
    agent.health.register("felix")
    agent._report()
    assert (agent.health.live, agent.health.ready) == (live, live)
    await agent.store.close()
