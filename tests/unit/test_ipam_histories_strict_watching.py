"""Histories of hosts that never borrow and decide from watched state."""

from __future__ import annotations

import pytest

from tests.support.ipam_histories import HISTORIES, try_histories


@pytest.mark.timeout(120 + HISTORIES)
def test_any_history_keeps_every_promise() -> None:
    """No address is held twice, handles never count too little, confirmed means owned, and all faults can be mended."""
    try_histories(borrowing=False, watching=True)
