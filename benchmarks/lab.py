"""How long a ring of nodes takes to deploy, to run a command in, and to destroy: ``./run bench lab [NODES]``."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from calipy.containerlab.driver import Lab


def ring(count: int) -> str:
    """A topology of ``count`` idle nodes, each linked to the next."""
    nodes = "\n".join(f"    r{n}: {{exec: [ip addr add 10.{n // 250}.{n % 250}.1/30 dev eth1]}}" for n in range(count))
    links = "\n".join(f'    - endpoints: ["r{n}:eth1", "r{(n + 1) % count}:eth2"]' for n in range(count))
    defaults = '{kind: linux, image: "calipy/plain:dev"}'
    return f"name: bench-ring\ntopology:\n  defaults: {defaults}\n  nodes:\n{nodes}\n  links:\n{links}\n"


def main() -> None:
    """Print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ring.clab.yml"
        file.write_text(ring(count))
        start = time.monotonic()
        lab = Lab.deploy(file)
        deployed = time.monotonic()
        try:
            times = []
            for n in range(min(count, 50)):
                before = time.monotonic()
                lab.exec(f"r{n}", ["true"]).check()
                times.append(time.monotonic() - before)
        finally:
            destroying = time.monotonic()
            lab.destroy(cleanup=True)
    print(f"{count} nodes in a ring: deploy {deployed - start:.2f} s, destroy {time.monotonic() - destroying:.2f} s")
    print(f"exec true: median {statistics.median(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
