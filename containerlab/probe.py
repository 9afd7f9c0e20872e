"""Runs inside a pod: serves, probes, streams. Standard library only; every command prints one JSON object.

    python -m calipy.containerlab.probe serve  --port 8080
    python -m calipy.containerlab.probe check  --to 10.244.0.1 10.244.1.1 --port 8080 --timeout 1
    python -m calipy.containerlab.probe await  --to 10.244.0.1 --timeout 5
    python -m calipy.containerlab.probe stream --to 10.244.0.1 --port 8080 --rate 100 --seconds 20
    python -m calipy.containerlab.probe hold   --to 10.244.0.1 --port 8080 --seconds 5

The server answers TCP lines and UDP datagrams with what it saw: the client's address and the packet's TTL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

ECHO_REQUEST, ECHO_REPLY = 8, 0
IP_RECVTTL = 12


def serve(port: int, *, background: bool) -> None:
    """Answer TCP and UDP on ``port`` of all addresses until killed; in the background return once both are bound."""
    if not background:
        asyncio.run(_serve(port, lambda: say({"serving": port})))
        return
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        if not os.read(reader, 1):
            sys.exit(f"probe: cannot serve on port {port}")
        say({"serving": port})
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream_fd in (0, 1, 2):
        os.dup2(null, stream_fd)
    asyncio.run(_serve(port, lambda: os.write(writer, b"x")))


def say(value: dict[str, Any]) -> None:
    """One JSON object, on a line of its own, at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def _serve(port: int, ready: Callable[[], object]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps({"peer": peer, "echo": line.decode().strip()}).encode() + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "0.0.0.0", port)  # the pod's own namespace
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    udp.bind(("0.0.0.0", port))
    udp.setblocking(False)

    def answer() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, controls, _, address = udp.recvmsg(2048, 64)
                ttl = next((struct.unpack("i", d[:4])[0] for lv, t, d in controls if lv == 0 and t == 2), 0)
                reply = {"peer": address[0], "ttl": ttl, "echo": data.decode("ascii", "replace")}
                with contextlib.suppress(OSError):
                    udp.sendto(json.dumps(reply).encode(), address)

    asyncio.get_running_loop().add_reader(udp, answer)
    ready()
    async with server:
        await server.serve_forever()


def check(targets: list[str], port: int, timeout: float) -> dict[str, Any]:
    """ICMP, TCP and UDP to every target at the same time; ``timeout`` seconds for each.

    Returns per target ``{"icmp": bool, "tcp": bool, "udp": bool, "peer": client's address as the server saw it,
    "ttl": TTL as the server saw it}``.
    """
    return asyncio.run(_check(targets, port, timeout))


async def _check(targets: list[str], port: int, timeout: float) -> dict[str, Any]:
    results = await asyncio.gather(*(_check_one(t, port, timeout) for t in targets))
    return dict(zip(targets, results, strict=True))


async def _check_one(target: str, port: int, timeout: float) -> dict[str, Any]:
    icmp, tcp, udp = await asyncio.gather(
        asyncio.to_thread(_ping, target, timeout), _tcp(target, port, timeout), _udp(target, port, timeout)
    )
    seen = {r["peer"] for r in (tcp, udp) if r}
    return {
        "icmp": icmp,
        "tcp": tcp is not None,
        "udp": udp is not None,
        "peer": seen.pop() if len(seen) == 1 else sorted(seen),
        "ttl": udp["ttl"] if udp else 0,
    }


async def _tcp(target: str, port: int, timeout: float) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(target, port)
            writer.write(b"hello\n")
            answer: dict[str, Any] = json.loads(await reader.readline())
            writer.close()
            return answer
    except (OSError, TimeoutError, ValueError):
        return None


async def _udp(target: str, port: int, timeout: float) -> dict[str, Any] | None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect((target, port))
            for _ in range(2):  # UDP has no retransmission of its own
                await loop.sock_sendall(sock, b"hello")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout / 2):
                        answer: dict[str, Any] = json.loads(await loop.sock_recv(sock, 2048))
                        return answer
        except OSError:
            pass
    return None


def _ping(target: str, timeout: float) -> bool:
    identifier = struct.unpack("H", os.urandom(2))[0]
    packet = _echo_request(identifier, 1)
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        try:
            sock.sendto(packet, (target, 0))
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([sock], [], [], left)[0]:
                    return False
                data, address = sock.recvfrom(2048)
                body = data[(data[0] & 15) * 4 :]
                kind, _, _, got, _ = struct.unpack("!BBHHH", body[:8])
                if kind == ECHO_REPLY and got == identifier and address[0] == target:
                    return True
        except OSError:
            return False
    return False


def await_answer(target: str, timeout: float) -> dict[str, Any]:
    """Ping every 2 ms until the first answer.

    Returns ``{"answered_at": monotonic seconds, comparable on the whole machine, or null, "sent": echo requests}``.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        identifier = struct.unpack("H", os.urandom(2))[0]
        for sequence in range(1 << 16):
            with contextlib.suppress(OSError):
                sock.sendto(_echo_request(identifier, sequence), (target, 0))
            if select.select([sock], [], [], 0.002)[0]:
                data, address = sock.recvfrom(2048)
                kind, _, _, got, _ = struct.unpack("!BBHHH", data[(data[0] & 15) * 4 :][:8])
                if kind == ECHO_REPLY and got == identifier and address[0] == target:
                    return {"answered_at": time.monotonic(), "sent": sequence + 1}
            if time.monotonic() > deadline:
                return {"answered_at": None, "sent": sequence + 1}
    return {"answered_at": None, "sent": 1 << 16}


def _echo_request(identifier: int, sequence: int) -> bytes:
    total = sum(struct.unpack("!4H", struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence)))
    checksum = ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum, identifier, sequence)


def stream(target: str, port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Send ``rate`` datagrams a second for ``seconds`` and count the answers (1 s of grace for the last ones).

    Returns ``{"sent", "received", "lost": [sequence numbers], "longest_gap_ms"}``.
    """
    count = int(rate * seconds)
    answered: set[int] = set()
    longest = 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target, port))
        sock.setblocking(False)
        start = last = time.monotonic()
        sent = 0
        while True:
            now = time.monotonic()
            while sent < count and now >= start + sent / rate:
                with contextlib.suppress(OSError):  # an unreachable moment counts as loss
                    sock.send(str(sent).encode())
                sent += 1
            if sent >= count and (len(answered) >= count or now > start + seconds + 1.0):
                break
            due = start + sent / rate if sent < count else now + 0.05
            if select.select([sock], [], [], max(0.0, min(due - now, 0.05)))[0]:
                with contextlib.suppress(OSError, ValueError):
                    answered.add(int(json.loads(sock.recv(2048))["echo"]))
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
    lost = sorted(set(range(sent)) - answered)
    return {"sent": sent, "received": len(answered), "lost": lost[:50], "longest_gap_ms": round(longest * 1000, 1)}


def hold(target: str, port: int, seconds: float) -> dict[str, Any]:
    """Keep one TCP connection open for ``seconds`` and talk on it ten times a second.

    Returns ``{"exchanges", "broken": reason or ""}``.
    """
    exchanges = 0
    try:
        with socket.create_connection((target, port), timeout=2.0) as sock, sock.makefile("rb") as lines:
            say({"connected": target})
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                sock.sendall(b"still here\n")
                if not lines.readline():
                    return {"exchanges": exchanges, "broken": "closed by the server"}
                exchanges += 1
                time.sleep(0.1)
    except OSError as error:
        return {"exchanges": exchanges, "broken": str(error) or type(error).__name__}
    return {"exchanges": exchanges, "broken": ""}


def main() -> None:
    """Parse the command line, do it, print the result."""
    parser = argparse.ArgumentParser(prog="probe")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "check", "await", "stream", "hold"):
        command = commands.add_parser(name)
        command.add_argument("--port", type=int, default=8080)
        if name == "serve":
            command.add_argument("--background", action="store_true")
        else:
            command.add_argument("--to", nargs="+" if name == "check" else None, required=True)
        if name in ("check", "await"):
            command.add_argument("--timeout", type=float, default=1.0)
        if name in ("stream", "hold"):
            command.add_argument("--seconds", type=float, required=True)
        if name == "stream":
            command.add_argument("--rate", type=float, default=100.0)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port, background=arguments.background)
    elif arguments.command == "check":
        say(check(arguments.to, arguments.port, arguments.timeout))
    elif arguments.command == "await":
        say(await_answer(arguments.to, arguments.timeout))
    elif arguments.command == "stream":
        say(stream(arguments.to, arguments.port, arguments.rate, arguments.seconds))
    else:
        say(hold(arguments.to, arguments.port, arguments.seconds))


if __name__ == "__main__":
    main()
