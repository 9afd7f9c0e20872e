"""BIRD as reflector, as ToR and in place of a node, configured as the manual says."""

from __future__ import annotations

import pytest

from tests.support.interop import Interop

pytestmark = pytest.mark.kernel


class TestBIRD(Interop):
    """Reflector, ToR, node: both families, TCP-MD5, communities, filters, restarts both ways."""

    __test__ = True
    kind = "BIRD"
