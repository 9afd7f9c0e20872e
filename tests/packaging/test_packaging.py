"""The packaging tricks hold: folders at the root import as calipy.*, and nothing is forgotten or imported twice."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ("felix", "bgp", "ipam", "policy", "containerlab")


def _python_files() -> list[Path]:
    folders = (ROOT / "calipy", *(ROOT / c for c in COMPONENTS))
    return [
        Path(directory) / name
        for folder in folders
        for directory, _, names in os.walk(folder, followlinks=False)
        for name in names
        if name.endswith(".py")
    ]


def _packages_on_disk() -> set[str]:
    result = set()
    for path in _python_files():
        if path.name == "__init__.py":
            parts = path.parent.relative_to(ROOT).parts
            result.add(".".join(parts if parts[0] == "calipy" else ("calipy", *parts)))
    return result


def test_package_list_equals_the_folders_on_disk() -> None:
    """A sub-package that pyproject.toml forgets would be missing from the wheel alone."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == _packages_on_disk()


@pytest.mark.parametrize("component", COMPONENTS)
def test_links_point_at_the_components(component: str) -> None:
    """Type checkers and an uninstalled checkout find calipy.<component> through a link."""
    link = ROOT / "calipy" / component
    assert link.is_symlink()
    assert link.resolve() == ROOT / component


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nothing_imports_a_component_by_its_bare_name() -> None:
    """``import felix`` would load the same file a second time, under another name."""
    everywhere = [*_python_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in everywhere
        for name in _imports(path)
        if name.split(".")[0] in COMPONENTS
    }
    assert not wrong


# Who may import whom (DESIGN.md). Left: a package; right: calipy packages that it must not import.
FORBIDDEN = {
    "felix": ("bgp", "ipam", "cli", "node", "cni", "containerlab", "conformance"),
    "bgp": ("felix", "ipam", "cli", "node", "cni", "containerlab", "conformance"),
    "ipam": ("felix", "bgp", "cli", "node", "cni", "containerlab", "conformance", "kernel"),
    "policy": ("felix", "bgp", "ipam", "cli", "node", "cni", "containerlab", "conformance", "kernel"),
    "calipy/datastore": ("felix", "bgp", "ipam", "cli", "node", "cni", "containerlab", "conformance", "kernel"),
    "calipy/kernel": (
        "felix",
        "bgp",
        "ipam",
        "policy",
        "cli",
        "node",
        "cni",
        "containerlab",
        "conformance",
        "datastore",
    ),
    "felix/graph": ("kernel", "felix.dataplane", "felix.render"),
    "felix/render": ("kernel", "felix.dataplane", "felix.graph"),
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    """Components meet in values; cores do not know their edges."""
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in _python_files()
        if path.is_relative_to(ROOT / package)
        for name in _imports(path)
        for forbidden in FORBIDDEN[package]
        if name == f"calipy.{forbidden}" or name.startswith(f"calipy.{forbidden}.")
    ]
    assert not wrong


PURE = (
    "felix/graph", "felix/render", "policy", "ipam/block.py", "ipam/handle.py", "ipam/affinity.py", "ipam/pools.py",
    "bgp/exabgp/config.py", "bgp/exabgp/commands.py", "bgp/exabgp/events.py", "bgp/rib.py", "bgp/decision.py",
    "bgp/peering.py", "bgp/advertise.py", "bgp/fib.py", "containerlab/topology.py",
)  # fmt: skip
IO_MODULES = {
    "socket",
    "subprocess",
    "asyncio",
    "os",
    "time",
    "threading",
    "selectors",
    "grpc",
    "pyroute2",
}


def _impurities(path: Path) -> set[str]:
    """Imports of I/O modules; of ``calipy.clock`` only what reads a clock, for its formatting is pure."""
    read = {
        f"clock.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "clock"
    }
    return (_imports(path) & IO_MODULES) | (read - {"clock.rfc3339"})


@pytest.mark.parametrize("core", PURE)
def test_pure_cores_do_no_io(core: str) -> None:
    """No sockets, processes, environment or clock inside what decides."""
    paths = [p for p in _python_files() if p == ROOT / core or p.is_relative_to(ROOT / core)]
    assert paths, f"{core} does not exist"
    assert {str(p.relative_to(ROOT)): found for p in paths if (found := _impurities(p))} == {}


def test_wheel_holds_every_module(tmp_path: Path) -> None:
    """What is installed from a wheel is what the checkout has."""
    source = tmp_path / "source"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "clab-*", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skip)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        timeout=110,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    for path in _python_files():
        parts = path.relative_to(ROOT).parts
        assert "/".join(parts if parts[0] == "calipy" else ("calipy", *parts)) in held
    assert {"calipy/containerlab/mesh.clab.yml", "calipy/py.typed"} <= held
