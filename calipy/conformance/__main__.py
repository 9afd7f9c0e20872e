"""``python -m calipy.conformance PATHS… [OPTIONS]``: run cases against a real etcd of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from calipy import log
from calipy.conformance import etcd, netpol_lab, netpol_packets, report
from calipy.conformance.bench import Bench, Options
from calipy.conformance.registry import suites
from calipy.conformance.report import CaseResult
from calipy.datastore.etcd import EtcdStore
from calipy.errors import CalipyError, KernelError

_SUFFIXES = frozenset({".json", ".yaml", ".yml"})


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the results to this file too.")
@click.option("--evaluate-only", is_flag=True, help="Network-policy cases through the evaluator only.")
@click.option("--packets-only", is_flag=True, help="Network-policy cases with packets only.")
@click.option("--backend", type=click.Choice(["nft", "legacy"]), help="Iptables backend of the agents under test.")
def main(
    paths: tuple[Path, ...], json_file: Path | None, evaluate_only: bool, packets_only: bool, backend: str | None
) -> None:
    """Run conformance cases: files, or all files below directories. Exit 1 if a case fails.

    The format of a file is found by its content. What is not supported yet is listed, and counts as skipped.
    Network-policy cases run through the evaluator and, as root, with packets through real agents in network namespaces.
    """
    if evaluate_only and packets_only:
        raise click.UsageError("--evaluate-only and --packets-only exclude each other")
    log.configure("error")
    options = Options(
        evaluate=not packets_only,
        packets=not evaluate_only,
        no_packets="" if evaluate_only else _enter_hub(),
        backend=backend or "",
    )
    try:
        with etcd.running() as url:
            results, ignored = asyncio.run(run(paths, url, options))
    except CalipyError as error:
        click.echo(f"calipy: {error}", err=True)
        sys.exit(1)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(results, ignored=ignored), indent=1) + "\n")
    click.echo(report.text(results, ignored=ignored))
    sys.exit(1 if any(result.outcome == "failed" for result in results) else 0)


def _enter_hub() -> str:
    """Go where packets can be sent; why that is not possible, "" if it is."""
    if os.geteuid() != 0:
        return "packets need root"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [name for name in netpol_packets.PROGRAMS if shutil.which(name, path=search) is None]:
        return f"packets need programs that are missing: {', '.join(missing)} (./run install)"
    try:
        netpol_lab.enter_hub()
    except KernelError as error:
        return f"packets need network namespaces: {error}"
    return ""


async def run(
    paths: Sequence[Path],
    url: str,
    options: Options = Options(),  # noqa: B008 - frozen
) -> tuple[list[CaseResult], list[str]]:
    """Run all files below the paths.

    Returns:
        The results, and a line for each folder with files that no suite knows.
    """
    store = EtcdStore([url])
    bench = Bench(store, options)
    results: list[CaseResult] = []
    unknown: Counter[str] = Counter()
    known = suites()
    try:
        await bench.open()
        for path, top in _files(paths).items():
            document = _json(path)
            suite = next((one for one in known if one.detect(path, document)), None)
            if suite is not None:
                results += await suite.run(str(path), document, bench)
            elif isinstance(document, dict) and isinstance(document.get("cases"), list):
                results += [
                    CaseResult(str(path), str(case.get("id", number)), "skipped", (), "format")
                    for number, case in enumerate(document["cases"])
                ]
            else:
                unknown[str(top)] += 1
    finally:
        await bench.close()
        await store.close()
    return results, [f"{count} files of {folder}" for folder, count in unknown.items()]


def _files(paths: Sequence[Path]) -> dict[Path, Path]:
    """Files to look at, and what reports call the place of those that nobody knows: the folder just below a path."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = path
            continue
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in _SUFFIXES:
                below = file.relative_to(path).parts
                found[file] = path / below[0] if len(below) > 1 else path
    return found


def _json(path: Path) -> Any:
    if path.suffix != ".json":
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


if __name__ == "__main__":
    main()
