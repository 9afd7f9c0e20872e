"""TCP-MD5 keys of sessions, from files that others write and change. An edge.

A key is rotated by writing its file again, as Kubernetes does with mounted Secrets. For a moment such a file may be
missing, empty or unreadable; a session that is up does not end for that: the key as last read stays in force.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calipy.bgp.exabgp.config import MAX_PASSWORD, checked_key
from calipy.errors import InvalidInputError

LOOK_SECONDS = 5.0
"""Between two looks at the files: both ends of a session learn of another key within about this time."""


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """What a file gives: the key, b"" if none could ever be read, and what is wrong with the file now, or ""."""

    key: bytes
    problem: str


class KeyFiles:
    """Reads keys and notices when their files change.

    Args:
        directory: with a directory for each Secret and a file for each of its keys.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, Key] = {}
        self._looks: dict[Path, tuple[int, ...] | None] = {}
        self._last: dict[Path, bytes] = {}

    @property
    def watched(self) -> bool:
        """Whether there are files to look at."""
        return bool(self._read)

    def start(self) -> None:
        """Sessions are planned anew: only the files that are asked for from now on are looked at."""
        self._read.clear()
        self._looks.clear()

    def get(self, secret: str, name: str) -> Key:
        """The key in a file; read once for all sessions of a plan. Blocks for as long as the file system does."""
        path = self._directory / Path(secret).name / Path(name).name
        if path not in self._read:
            self._looks[path] = _look(path)  # before reading: what changes in between is seen as changed
            self._read[path] = self._from(path)
        return self._read[path]

    def changed(self) -> bool:
        """Whether a file is another one than was read, or one that could not be read can be now. O(files)."""
        return any(
            _look(path) != look or (self._read[path].problem and self._from(path).problem == "")
            for path, look in self._looks.items()
        )

    def _from(self, path: Path) -> Key:
        try:
            with path.open("rb") as file:
                key = checked_key(file.read(MAX_PASSWORD + 16), str(path))
        except OSError as error:
            problem = f"password: cannot read {path}: {error.strerror}"
        except InvalidInputError as error:
            problem = str(error)
        else:
            self._last[path] = key
            return Key(key, "")
        last = self._last.get(path, b"")
        return Key(last, f"{problem}; the key as last read stays in force" if last else problem)


def _look(path: Path) -> tuple[int, ...] | None:
    """What tells one state of a file from another, None while it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
