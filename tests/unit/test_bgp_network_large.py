"""A network of 500 nodes, simulated: what holds for a few holds at the size of a large cluster."""

from __future__ import annotations

import random

import pytest

from tests.support.bgp_network import Network, mesh, reflected


@pytest.mark.timeout(400)
def test_five_hundred_nodes() -> None:
    """500 nodes, mesh and three reflectors: few rounds, the same tables, also after a tenth of them has failed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown if it fails
    chance = random.Random(seed)
    behind, direct = Network(reflected(500, 3)), Network(mesh(500))
    assert behind.converge(chance) <= 6
    assert direct.converge(chance) <= 6
    gone = ["n0", *chance.sample([f"n{i}" for i in range(3, 500)], 50)]
    for network in (behind, direct):
        network.fail(gone)
        network.converge(chance)
    left = {direct.blocks[name] for name in direct.ribs}
    for name in direct.ribs:
        assert behind.table(name) == direct.table(name)
        assert direct.table(name).keys() == left - {direct.blocks[name]}
    # Without reflectors nobody hears of anybody, and nothing of the past stays.
    behind.fail(["n1", "n2"])
    behind.converge(chance)
    assert {name for name in behind.ribs if behind.table(name)} == set()
