"""What commands take from files, directories and standard input, and how they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from calipy.cli import workload
from calipy.cli.main import calipy
from calipy.cli.session import Session
from calipy.datastore import codec
from calipy.datastore.client import Client
from calipy.datastore.memory import MemoryStore
from calipy.datastore.resources import KINDS
from calipy.errors import CalipyError, InvalidInputError

NODE = "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: {}}}\nspec: {{}}\n"
SET = "apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {{name: {}, namespace: shop}}\nspec: {{}}\n"


class MemorySession(Session):
    """Commands on a store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Client(MemoryStore())

    def run(self, work: Callable[[Client], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await work(self.client)

        return asyncio.run(main())


class Run:
    """Runs command lines on one store in memory."""

    def __init__(self) -> None:
        self.session = MemorySession()

    def __call__(self, *arguments: object, **extra: Any) -> Result:
        return CliRunner().invoke(calipy, [str(one) for one in arguments], obj=self.session, **extra)


@pytest.fixture
def run() -> Run:
    """A command line on a store of its own."""
    return Run()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Resources at two levels, and a file that is none."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text(NODE.format("a"))
    (tmp_path / "b.yml").write_text(SET.format("b"))
    (tmp_path / "deep" / "c.json").write_text(json.dumps(yaml.safe_load(NODE.format("c"))))
    (tmp_path / "readme.txt").write_text("no resources")
    return tmp_path


def refusal(result: Result) -> str:
    """The error of ours that a command ended with."""
    assert isinstance(result.exception, CalipyError), result.output
    return str(result.exception)


def test_a_directory_is_its_files(run: Run, directory: Path) -> None:
    """Of a directory the files with the right suffixes are read, with -R also those further down."""
    assert run("apply", "-f", directory).stdout == "Node(a) applied\nNetworkSet(shop/b) applied\n"
    assert run("apply", "-R", "-f", directory).stdout.count("applied") == 3
    assert run("get", "-R", "-f", directory, "-o", "name").stdout.split() == ["a", "shop/b", "c"]
    assert run("delete", "-R", "-f", directory).exit_code == 0
    assert run("delete", "-s", "node", "a").stdout == "Node(a) is left alone\n"


def test_an_error_in_a_directory_names_the_file(run: Run, directory: Path) -> None:
    """Nothing of a directory is written when one file cannot be read, and the file is named."""
    (directory / "z.yaml").write_text("kind: Tier\n")
    assert str(directory / "z.yaml") in refusal(run("apply", "-f", directory))
    assert run("get", "nodes", "-o", "name").stdout == ""


@pytest.mark.parametrize("text", ["", "[]"])
def test_an_empty_file_is_an_error_unless_that_is_fine(text: str, run: Run, tmp_path: Path) -> None:
    """A file without resources is refused with the way out, --skip-empty."""
    file = tmp_path / "empty.yaml"
    file.write_text(text)
    for command in ("apply", "create", "replace", "delete", "validate", "get"):
        assert "--skip-empty" in refusal(run(command, "-f", file))
        skipped = run(command, "-f", file, "--skip-empty")
        assert (skipped.exit_code, skipped.stdout) == (0, "No resources specified\n")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"kind: \xff\xfe", "is not UTF-8 (byte 6)"),
        (b"\x00", "not YAML"),
        (b"&a [*a]", "in itself"),
        (b"[" * 100_000, "too deeply"),
    ],
)
def test_files_that_are_no_texts(content: bytes, complaint: str, run: Run, tmp_path: Path) -> None:
    """Bytes that are no YAML are refused in a sentence, from a file and from standard input."""
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    for command in (("apply",), ("bgp", "plan"), ("validate",)):
        assert complaint in refusal(run(*command, "-f", file))
    assert complaint in refusal(run("apply", "-f", "-", input=content))


def test_get_of_a_file_shows_the_datastore(run: Run, tmp_path: Path) -> None:
    """With -f the objects that a file names are shown as they are stored, a table for each kind."""
    file = tmp_path / "both.yaml"
    file.write_text(f"{NODE.format('a')}---\n{SET.format('b')}")
    run("apply", "-f", file)
    run("label", "node", "a", "rack=r1")
    assert run("get", "-f", file).stdout.splitlines() == ["NAME", "a", "", "NAME", "b"]
    stored = yaml.safe_load(run("get", "-f", file, "-o", "yaml").stdout)
    assert [one["metadata"].get("labels") for one in stored] == [{"rack": "r1"}, None]
    run("delete", "node", "a")
    assert "Node(a) does not exist" in refusal(run("get", "-f", file))
    assert "give a kind, or a file" in refusal(run("get"))
    assert "give a kind, or a file" in refusal(run("get", "nodes", "-f", file))


def test_validate_needs_no_datastore(tmp_path: Path) -> None:
    """Each resource is judged by itself; one that is refused makes the exit status 1."""
    file = tmp_path / "pools.yaml"
    pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {}}}\nspec: {{cidr: {}}}\n"
    file.write_text("---\n".join(pool.format(*pair) for pair in (("a", "10.0.0.0/16"), ("b", "10.0.0.1/16"))))
    result = CliRunner().invoke(calipy, ["validate", "-f", str(file)])
    assert (result.exit_code, result.stdout) == (1, "IPPool(a) is valid\n")
    assert "IPPool(b): spec.cidr = '10.0.0.1/16'" in result.stderr


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_version_for_programs(form: str, read: Callable[[str], Any], run: Run) -> None:
    """The version is there as JSON and YAML, with the cluster's where it is asked for."""
    alone = read(run("version", "--client", "-o", form).stdout)
    assert set(alone) == {"clientVersion"}
    assert read(run("version", "-o", form).stdout) == {**alone, "clusterVersion": "unknown", "clusterType": "unknown"}


def test_a_label_twice_is_refused() -> None:
    """Two values for one label are a mistake, and no last one that wins."""
    assert workload._labels(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    with pytest.raises(InvalidInputError, match="a is given twice"):
        workload._labels(["a=b", "a=c"])


def test_filters_that_exclude_each_other() -> None:
    """Two values of one label can match no node: said, instead of an empty result."""
    arguments = ["lab", "exec", "--name", "none", "--label", "a=b", "--label", "a=c", "--cmd", "true"]
    result = CliRunner().invoke(calipy, arguments)
    assert result.exit_code == 1
    assert "a node has one value, not both b and c" in result.stderr


def test_an_object_twice_in_a_file_is_told(run: Run, tmp_path: Path) -> None:
    """Documents of the same name are taken in their order, with a warning; a second creation says what is there."""
    file = tmp_path / "twice.yaml"
    file.write_text(f"{SET.format('b')}---\n{SET.format('b').replace('{}', '{nets: [10.0.0.0/8]}')}")
    done = run("apply", "-f", file)
    assert (done.exit_code, "NetworkSet(shop/b) is there 2 times" in done.stderr) == (0, True)
    shown = json.loads(run("get", "netset", "b", "-n", "shop", "-o", "json").stdout)
    assert shown["spec"] == {"nets": ["10.0.0.0/8"]}
    assert "calipy: NetworkSet(shop/b): exists already\n" in run("create", "-f", file).stderr


def test_a_journal_that_is_none(run: Run, tmp_path: Path) -> None:
    """What --undo is given must be a journal."""
    for content in (b"\xff", b"x", b"[]", b'{"text": "a"}'):
        (tmp_path / "file").write_bytes(content)
        assert "is no journal" in refusal(run("ipam", "repair", "--undo", tmp_path / "file"))


def test_the_release_may_be_waved_through_anywhere(run: Run) -> None:
    """--allow-version-mismatch counts before and after the command's name, and every command of calicoctl takes it."""
    old = codec.new("ClusterInformation", "default", KINDS["ClusterInformation"].spec(calico_version="v3.20.0"))
    run.session.run(lambda client: client.create(old))
    assert "belongs to a release" in refusal(run("get", "nodes"))
    flag = "--allow-version-mismatch"
    for words in (("get", "nodes", flag), (flag, "get", "nodes"), ("ipam", "show", flag), (flag, "version")):
        assert run(*words).exit_code == 0, words
    for words in (("version", flag), ("datastore", "migrate", "lock", flag), ("ipam", "check", flag)):
        assert run(*words).exit_code == 0, words


@pytest.mark.parametrize(
    "words",
    [["show"], ["show", "--show-configuration"], ["show", "--ip", "10.0.0.1"], ["check"], ["capacity"], ["repair"]],
)
def test_ipam_for_programs(words: list[str], run: Run) -> None:
    """JSON and YAML hold the same."""
    shown = [run("ipam", *words, "-o", form) for form in ("json", "yaml")]
    from_json, from_yaml = json.loads(shown[0].stdout), yaml.safe_load(shown[1].stdout)
    if words == ["check"]:  # the reports tell when they were made
        assert from_json.pop("report").keys() == from_yaml.pop("report").keys()
    assert from_json is not None
    assert from_json == from_yaml


def shell(words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command line of a shell in which ``$calipy`` is the command."""
    program = f"{shlex.quote(sys.executable)} -m calipy.cli.main"
    environ = {**os.environ, "CALIPY_RUN_DIR": "/nonexistent", **environ}
    return subprocess.run(
        ["/bin/sh", "-c", words.replace("$calipy", program)], capture_output=True, text=True, env=environ, check=False
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("$calipy --help > /dev/full", "calipy: No space left on device"),
        ("$calipy apply -f - <&-", "standard input is closed"),
        ("$calipy lab validate -t - <&-", "standard input is closed"),
        (r"printf 'name: \377' | $calipy lab validate -t -", "is not UTF-8 (byte 6)"),
        ("$calipy validate -f /dev/zero", "has more than"),
        (r"$calipy bgp explain \"$(printf '\377')\"", "is not UTF-8"),
        (r"$calipy validate -f \"/nonexistent/$(printf '\377')\"", r"/nonexistent/\udcff"),
    ],
)
def test_odd_surroundings_end_in_a_sentence(words: str, complaint: str) -> None:
    """A full disk, closed streams, files without end and bytes that are no text: one line, exit status 1."""
    done = shell(words)
    assert done.returncode == 1, done
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_terminal_with_few_characters() -> None:
    """What an encoding lacks is shown by numbers instead of ending the command."""
    done = shell("$calipy get --help", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert r"nodes \u2026" in done.stdout
