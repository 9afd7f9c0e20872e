"""Which directories of the machine hold the Python and the calipy that run here. Edge."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import calipy
from calipy.containerlab.images import find_etcd

_SYSTEM = ("/usr", "/bin", "/lib", "/sbin")


@cache
def program_directories() -> tuple[str, ...]:
    """Directories that every node sees read-only at the same path.

    The system's own ones need no mention, nor do directories inside another one of the list.
    """
    wanted = {
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable).parent,
        Path(sys.executable).resolve().parent,
    }
    package = Path(calipy.__file__)
    wanted |= {package.parent.parent, package.resolve().parent.parent}
    if etcd := find_etcd():
        wanted |= {Path(etcd).parent, Path(etcd).resolve().parent}
    outside = sorted(path for path in wanted if not any(path == Path(s) or path.is_relative_to(s) for s in _SYSTEM))
    kept: list[Path] = []
    for path in outside:
        if path != Path("/") and not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(str(path) for path in kept if path.is_dir())
