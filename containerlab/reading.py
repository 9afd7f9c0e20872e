"""Finding and reading topology files for the commands: the disk around ``topology``. Edge."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from calipy.containerlab import registry, topology
from calipy.containerlab.errors import TopologyError
from calipy.containerlab.management import Overrides
from calipy.containerlab.model import Topology

SUFFIXES = (".clab.yml", ".clab.yaml")


def find_topology(path: str | Path | None) -> Path:
    """The topology file meant by ``path``: itself, or the only one in a directory (None: the current one).

    Raises:
        TopologyError: there is none, or several.
    """
    place = Path(path) if path is not None else Path()
    if place.is_file():
        return place.absolute()
    if not place.is_dir():
        raise TopologyError("is neither a file nor a directory" if place.exists() else "no such file", place=str(place))
    found = sorted(file for file in place.iterdir() if file.name.endswith(SUFFIXES))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise TopologyError(
            f"expected exactly one *.clab.yml in the directory {place.absolute()}, found {names}",
            remedy="name it: -t FILE",
        )
    return found[0].absolute()


def read_topology(
    path: str | Path | None = None,
    *,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
    name: str = "",
    node_filter: Sequence[str] = (),
    loose: bool = False,
) -> Topology:
    """Read and check a topology file (or ``text``, which then counts as the file at ``path``).

    ``loose`` skips the look at other files (bind sources, env-files), for commands that only need to know the nodes.

    Raises:
        TopologyError: it cannot be deployed.
    """
    environ = os.environ if environ is None else environ
    file = Path(path).absolute() if text is not None and path is not None else find_topology(path)
    if text is None:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise TopologyError(f"cannot be read: {error.strerror or error}", place=str(file)) from None
        except UnicodeDecodeError as error:
            raise TopologyError(f"is not UTF-8 (byte {error.start})", place=str(file)) from None
    return topology.load(
        text,
        file=str(file),
        environ=environ,
        files=_NoFiles() if loose else _Disk(),
        overrides=overrides,
        name=name,
        node_filter=node_filter,
        lab_base=environ.get("CLAB_LABDIR_BASE", ""),
    )


class _Disk:
    """The files of this machine."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""
        return os.path.exists(path)  # noqa: PTH110 -- a path may be anything the file says

    def read(self, path: str) -> str:
        """Its text."""
        return Path(path).read_text(encoding="utf-8")


class _NoFiles:
    """``Files`` that are all there, and empty."""

    def exists(self, path: str) -> bool:  # noqa: ARG002 -- of the protocol
        return True

    def read(self, path: str) -> str:  # noqa: ARG002 -- of the protocol
        return ""


def lab_name(path: str | Path | None, environ: Mapping[str, str] | None = None) -> str:
    """The name of the lab that a topology file describes.

    Raises:
        TopologyError: there is no such file, or it cannot be read.
    """
    return read_topology(path, environ=environ, loose=True).name


def keep_standard_input(text: str) -> tuple[Path, str]:
    """Give a topology that came from standard input a file, below the registry; its path and the text."""
    folder = registry.directory() / ".stdin"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"topo-{time.time_ns()}.clab.yml"
    file.write_text(text, encoding="utf-8")
    return file, text
