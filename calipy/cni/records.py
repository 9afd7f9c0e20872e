"""What this node remembers of its workloads beyond their endpoints: whose is which network namespace."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from calipy import api_client, log

_log = log.get("workloads")


@dataclass(frozen=True, slots=True)
class Record:
    """A workload's namespace.

    Attributes:
        container_id: of its present incarnation.
        netns: path of its namespace.
        created: the namespace is ours, and goes with the workload.
    """

    namespace: str
    name: str
    container_id: str
    netns: str
    created: bool


class Records:
    """The records of this node, one small file each. A namespace holds no dot, so file names are unambiguous."""

    def __init__(self, directory: Path | None = None) -> None:
        """Use ``directory``; default ``workloads`` beside the daemons' sockets."""
        self._directory = directory or api_client.run_dir() / "workloads"

    def get(self, namespace: str, name: str) -> Record | None:
        """The record of a workload, or None."""
        return self._read(self._path(namespace, name))

    def all(self) -> list[Record]:
        """All records, by namespace and name."""
        found = (self._read(path) for path in self._directory.glob("*.json"))
        return sorted((record for record in found if record), key=lambda record: (record.namespace, record.name))

    def put(self, record: Record) -> None:
        """Write a record, whole or not at all."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(record.namespace, record.name)
        newborn = path.with_suffix(".new")
        newborn.write_text(json.dumps(asdict(record)))
        newborn.rename(path)

    def remove(self, namespace: str, name: str) -> None:
        """Forget a workload."""
        self._path(namespace, name).unlink(missing_ok=True)

    def _path(self, namespace: str, name: str) -> Path:
        return self._directory / f"{namespace}.{name}.json"

    def _read(self, path: Path) -> Record | None:
        try:
            return Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            _log.warning("unreadable record ignored", path=str(path), error=str(error))
            return None
