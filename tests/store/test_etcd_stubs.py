"""The committed etcd stubs are what the committed .proto files say, and speak to old and new protobuf alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("calipy/datastore/etcdpb")


def generator() -> str:
    """The interpreter that has grpcio-tools; skips the test where there is none."""
    python = os.environ.get("CALIPY_PROTOC_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import grpc_tools"], check=False, capture_output=True)
    if found.returncode:
        pytest.skip("grpcio-tools==1.71.2 is not installed; name an interpreter that has it in CALIPY_PROTOC_PYTHON")
    return python


def test_stubs_are_generated_from_the_protos(tmp_path: Path):
    """Generating again gives, byte for byte, what is committed."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    assert len(protos) == 3
    subprocess.run(
        [generator(), "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *protos],
        check=True,
        cwd=ROOT,
    )
    made = {path.name: path.read_text() for path in (tmp_path / PACKAGE).iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / PACKAGE).glob("*_pb2.py*")}
    assert made == committed
