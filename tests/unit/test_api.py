"""The local API over a real Unix socket: answers, errors, limits and who may ask."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from calipy import api_client
from calipy.api import Client, Server
from calipy.api_client import ApiError, call
from calipy.errors import (
    AgentUnavailableError,
    AlreadyExistsError,
    CalipyError,
    InvalidInputError,
    KernelError,
    UnavailableError,
)


async def echo(params):
    return params


async def fail(params):
    raise {
        "input": InvalidInputError("too big", field="mtu", value=1, remedy="use less"),
        "exists": AlreadyExistsError("there already", key="/calico/x"),
        "store": UnavailableError("no etcd", remedy="start it"),
        "kernel": KernelError("no such device", code=19),
        "plain": CalipyError("hm"),
        "bug": ZeroDivisionError("secret detail"),
    }[params["kind"]]


async def forever(params):
    await asyncio.Event().wait()


HANDLERS = {"echo": echo, "fail": fail, "forever": forever}


@pytest.fixture
async def path(tmp_path):
    """The socket of a running server."""
    socket_path = tmp_path / "run" / "agent.sock"
    async with Server(socket_path, HANDLERS, timeout=0.3):
        yield socket_path


async def ask(path: Path, *lines: bytes) -> list[dict]:
    """Send raw lines, close our side, and read all answers."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    writer.write(b"".join(lines))
    writer.write_eof()
    answers = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    return answers


async def test_both_clients_get_the_answer(path):
    """The asynchronous and the blocking client return the handler's result, whatever JSON it is."""
    params = {"name": "web", "labels": {"app": "müsli"}, "n": [1, 2.5, None, True]}
    assert await Client(path).call("echo", params) == params
    assert await asyncio.to_thread(call, path, "echo", params) == params


async def test_answers_carry_the_ids_of_their_requests(path):
    """Several requests on one connection; a slow one does not hold up the next."""
    answers = await ask(
        path,
        b'{"id":"slow","method":"forever"}\n',
        b'{"id":7,"method":"echo","params":{"a":1}}\n',
    )
    assert answers[0] == {"id": 7, "result": {"a": 1}}
    assert answers[1]["id"] == "slow"
    assert answers[1]["error"]["code"] == api_client.TIMED_OUT


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("input", api_client.BAD_REQUEST, "mtu = 1: too big"),
        ("exists", api_client.CONFLICT, "there already"),
        ("store", api_client.UNAVAILABLE, "no etcd"),
        ("kernel", api_client.KERNEL, "no such device"),
        ("plain", api_client.INTERNAL, "hm"),
    ],
)
async def test_errors_keep_code_message_and_remedy(path, kind, code, message):
    """What the handler raised is what the caller catches; the remedy is not repeated in the message."""
    with pytest.raises(ApiError) as caught:
        await Client(path).call("fail", {"kind": kind})
    assert caught.value.code == code
    assert caught.value.args[0] == message
    assert caught.value.remedy == {"input": "use less", "store": "start it"}.get(kind, "")


async def test_a_bug_is_an_internal_error_without_its_text(path):
    """Details of unforeseen errors go to the log, not to the caller; the server lives on."""
    answer = (await ask(path, b'{"id":1,"method":"fail","params":{"kind":"bug"}}\n'))[0]
    assert answer["error"]["code"] == api_client.INTERNAL
    assert "secret" not in json.dumps(answer)
    assert await Client(path).call("echo", {"still": "here"}) == {"still": "here"}


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"id":1}\n',
        b'{"id":1,"method":5}\n',
        b'{"id":1,"method":"echo","params":[]}\n',
        b"\xff\n",
    ],
)
async def test_what_is_not_a_request_is_an_error_object(path, line):
    """Bad JSON and bad shapes are answered, and the connection goes on."""
    answers = await ask(path, line + b"\n", b'{"id":2,"method":"echo"}\n')
    by_id = {answer["id"]: answer for answer in answers}
    assert by_id[2] == {"id": 2, "result": {}}
    other = next(answer for answer in answers if answer["id"] != 2)
    assert other["error"]["code"] == api_client.BAD_REQUEST


async def test_an_unknown_method_names_the_known_ones(path):
    """405, with the list as remedy."""
    with pytest.raises(ApiError, match="unknown method 'ecko'") as caught:
        await Client(path).call("ecko")
    assert caught.value.code == api_client.UNKNOWN_METHOD
    assert "echo, fail, forever" in caught.value.remedy


async def test_the_size_of_a_request_is_limited(path):
    """Just below 1 MiB passes; above is refused and the connection closed; the client refuses by itself."""
    filler = "x" * (api_client.MAX_REQUEST - 100)
    assert (await Client(path).call("echo", {"a": filler}))["a"] == filler
    answers = await ask(path, b'{"id":1,"method":"echo","params":{"a":"' + b"x" * api_client.MAX_REQUEST + b'"}}\n')
    assert answers[0]["error"]["code"] == api_client.TOO_LARGE
    with pytest.raises(InvalidInputError, match="limit is 1048576"):
        call(path, "echo", {"a": filler + "x" * 200})


async def test_a_client_that_leaves_does_not_stop_its_request(tmp_path):
    """Work that began is finished, so that nothing is left half done."""
    started, finished = asyncio.Event(), asyncio.Event()

    async def work(params):
        started.set()
        await asyncio.sleep(0.05)
        finished.set()

    async with Server(tmp_path / "s", {"work": work}):
        _reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b'{"id":1,"method":"work"}\n')
        await started.wait()
        writer.transport.abort()
        await asyncio.wait_for(finished.wait(), 5)


async def test_the_socket_is_for_its_owner_only(path):
    """Mode 0600, and no other file beside it."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
async def test_other_users_are_refused_by_the_kernels_word(tmp_path):
    """Even where the file's mode would let them in."""
    tmp_path.chmod(0o755)
    path = Path(f"/tmp/calipy-api-{os.getpid()}.sock")
    async with Server(path, HANDLERS):
        os.chmod(path, 0o666)  # noqa: PTH101 - in an event loop, pathlib is flagged as well
        program = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{path}');print(s.makefile().readline())"
        )
        done = await asyncio.to_thread(
            subprocess.run, ["/usr/bin/python3", "-c", program], user=65534, capture_output=True, text=True, check=True
        )
    assert json.loads(done.stdout)["error"]["code"] == api_client.FORBIDDEN


async def test_a_dead_daemons_socket_is_replaced_and_a_living_one_respected(tmp_path):
    """A stale file does not hinder a start; a second server does not steal; closing removes only one's own."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    first = Server(path, HANDLERS)
    await first.start()
    with pytest.raises(CalipyError, match="another daemon"):
        await Server(path, HANDLERS).start()
    assert await Client(path).call("echo") == {}
    await first.close()
    assert not path.exists()


async def test_no_daemon_is_a_clear_error(tmp_path):
    """Both clients say where nothing answers and what to do."""
    with pytest.raises(AgentUnavailableError, match="calipy node run"):
        call(tmp_path / "none", "status")
    with pytest.raises(AgentUnavailableError, match="calipy node run"):
        await Client(tmp_path / "none").call("status")


async def test_a_daemon_that_does_not_answer_is_a_clear_error(tmp_path):
    """The deadline is the caller's."""
    async with Server(tmp_path / "s", HANDLERS, timeout=30):
        with pytest.raises(AgentUnavailableError, match=r"within 0\.1 s"):
            await Client(tmp_path / "s").call("forever", timeout=0.1)
        with pytest.raises(AgentUnavailableError, match=r"within 0\.1 s"):
            await asyncio.to_thread(call, tmp_path / "s", "forever", timeout=0.1)


def test_the_blocking_client_needs_no_event_loop():
    """Importing it does not import asyncio: commands start faster."""
    program = "import sys, calipy.api_client; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
