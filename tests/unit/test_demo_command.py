"""``./run demo`` as a command: one at a time, and an end that is no traceback."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from calipy.containerlab import demo
from calipy.errors import CalipyError


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(demo, "LOCK", str(tmp_path))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_one_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """While one runs, another touches nothing and says why; afterwards it may."""
    told: list[bool] = []
    monkeypatch.setattr(demo, "_tell", lambda *, keep: told.append(keep) or 0)
    with demo._alone():
        assert demo.main([]) == 1
    assert "a demonstration is running" in capsys.readouterr().err
    assert told == []
    assert demo.main(["--keep"]) == 0
    assert told == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_takes_the_lab_down(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C and SIGTERM run what ``finally`` holds, and end with 130 and one line."""
    steps: list[str] = []

    def story(*, keep: bool) -> int:
        try:
            os.kill(os.getpid(), number)
        finally:
            steps.append("taken down")
        return 0

    monkeypatch.setattr(demo, "_tell", story)
    assert demo.main([]) == 130
    assert steps == ["taken down"]
    assert "interrupted" in capsys.readouterr().err


def test_an_error_of_ours_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A deploy that fails is one line and exit status 1."""

    def story(*, keep: bool) -> int:
        raise CalipyError("no such thing", remedy="make one")

    monkeypatch.setattr(demo, "_tell", story)
    assert demo.main([]) == 1
    assert "no such thing (make one)" in capsys.readouterr().err


@pytest.mark.parametrize("where", [".", "containerlab", "/"])
def test_what_it_says_to_type_can_be_typed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands shown after --keep name this checkout's front door and the topology from where the user is."""
    root = demo.TOPOLOGY.resolve().parents[1]
    monkeypatch.chdir(root / where)
    commands = [line.strip() for line in demo.look_around().splitlines() if line.startswith("  ")]
    assert len(commands) == 3
    for command in commands:
        program, *words = shlex.split(command)
        assert "/" in program, "a shell does not look in the current directory"
        assert Path(program).resolve() == root / "run"
        assert words[:2] == ["calipy", "lab"]
        assert Path(words[words.index("-t") + 1]).samefile(demo.TOPOLOGY)
    if where == ".":
        assert commands[0] == "./run calipy lab inspect -t containerlab/mesh.clab.yml"
