"""What is sent to ExaBGP can do it no harm: commands, configuration, environment."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.bgp.exabgp import commands, config
from calipy.bgp.exabgp.config import SpeakerSession
from calipy.bgp.path import Attributes, Segment
from calipy.bgp.peering import Session
from calipy.errors import InvalidInputError

PEER, HERE = ip_address("10.0.0.2"), ip_address("10.0.0.1")
uint16 = st.integers(0, 0xFFFF)
uint32 = st.integers(0, 0xFFFFFFFF)
attributes = st.builds(
    Attributes,
    next_hop=st.ip_addresses(v=4),
    origin=st.sampled_from(["igp", "egp", "incomplete"]),
    as_path=st.lists(
        st.builds(Segment, st.sampled_from(["sequence", "set"]), st.lists(uint32, min_size=1, max_size=4).map(tuple)),
        max_size=2,
    ).map(tuple),
    local_preference=st.none() | uint32,
    med=st.none() | uint32,
    communities=st.lists(st.tuples(uint16, uint16), max_size=3).map(tuple),
    large_communities=st.lists(st.tuples(uint32, uint32, uint32), max_size=3).map(tuple),
    originator_id=st.none() | st.ip_addresses(v=4),
    cluster_list=st.lists(st.ip_addresses(v=4), max_size=3).map(tuple),
)


@given(attributes, st.integers(1, 400), st.integers(0, 120))
def test_every_command_is_harmless(given_: Attributes, prefixes: int, peers: int) -> None:
    """Printable ASCII on one line within ExaBGP's read size, without the word that ends it, no prefix lost."""
    nlri = [ip_network((0x0A000000 + 64 * i, 26)) for i in range(prefixes)]
    audience = [ip_address(0x0A000001 + i) for i in range(peers)] or None
    lines = list(commands.announce(given_, nlri, audience)) + list(commands.withdraw(given_, nlri, audience))
    assert all(line.isascii() and line.isprintable() and "json" not in line for line in lines)
    assert all(len(line) <= commands.LONGEST for line in lines)
    told = [word for line in lines if "announce" in line for word in line.partition(" nlri ")[2].split()]
    groups = -(-peers // commands.PEERS_PER_COMMAND) or 1
    assert sorted(told) == sorted(str(prefix) for prefix in nlri for _ in range(groups))


@pytest.mark.parametrize("line", ["version json", "x\ny", "é", "", "announce route json", "a" * 20000, "tab\there"])
def test_dangerous_lines_are_refused(line: str) -> None:
    """What ends ExaBGP, or its API process, is a bug and never sent."""
    if line:
        with pytest.raises(ValueError):
            commands.checked(line)


def session(**fields: object) -> SpeakerSession:
    """A session to 10.0.0.2."""
    base = {"type": "global", "peer_as": 64500, "local_as": 64512, "router_id": IPv4Address(1), "local": HERE}
    return SpeakerSession(Session(PEER, **{**base, **fields}), HERE)  # type: ignore[arg-type]


def test_configuration_keeps_clear_of_the_traps() -> None:
    """The process section comes first; families, manual End-of-RIB, one passive end and addresses are written out."""
    text = config.render([session(passive=True), session()], ["/usr/bin/python3", "-I", "/x/relay.py", "/run/s.sock"])
    assert text.startswith("process api {")
    assert text.count("manual-eor true;") == 2
    assert text.count("family { ipv4 unicast; }") == 2
    assert text.count("local-address 10.0.0.1;") == 2
    assert (text.count("passive true;"), text.count("passive false;"), text.count("connect 179;")) == (1, 1, 1)


@pytest.mark.parametrize("word", ["/run/with space", "/run/a;b", "/run/a{b", 'x"y'])
def test_paths_that_the_grammar_cannot_hold(word: str) -> None:
    """A path that would break the file is refused by name."""
    with pytest.raises(InvalidInputError, match="CALIPY_RUN_DIR"):
        config.render([], ["/usr/bin/python3", word])


@given(st.binary(min_size=1, max_size=80))
def test_any_key_fits_the_grammar_and_is_never_shown(key: bytes) -> None:
    """Keys go in as base64, whatever their bytes; a session's text form hides them."""
    one = SpeakerSession(session().session, HERE, key)
    section = config.neighbours([one])[PEER]
    (line,) = [line for line in section.splitlines() if "md5-password" in line]
    assert set(line.split('"')[1]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert "key=***" in repr(one)


@pytest.mark.parametrize("key", [b"", b"\n", b"x" * 81])
def test_keys_that_the_kernel_would_refuse(key: bytes) -> None:
    """Empty and overlong keys are refused, without showing them."""
    with pytest.raises(InvalidInputError, match="80") as caught:
        config.checked_key(key, "/etc/secret")
    assert "xxx" not in str(caught.value)
    assert config.checked_key(b"s3cr3t\n", "f") == b"s3cr3t"


def test_exabgp_accepts_everything_we_render(tmp_path: Path) -> None:
    """ExaBGP's own validation takes every option that a session can have, IPv6 included."""
    many = [
        session(),
        SpeakerSession(
            Session(
                ip_address("10.0.0.3"), "global", 4200000000, 64512, IPv4Address(1), HERE,
                port=1179, restart_time=4095, hold_time=3, ttl_security=2,
            ),
            HERE,
            b'\x00"};\xff',
        ),
        SpeakerSession(
            Session(ip_address("fd00::2"), "node-to-node mesh", 64512, 64512, IPv4Address(1), None, restart_time=0),
            ip_address("fd00::1"),
        ),
    ]  # fmt: skip
    file = tmp_path / "exabgp.conf"
    file.write_text(config.render(many, [sys.executable, "-I", "-S", "/bin/true", "/run/x.sock"]))
    done = subprocess.run(
        [sys.executable, "-I", "-m", "exabgp", "validate", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_settings_keep_clear_of_the_traps() -> None:
    """What ExaBGP would do otherwise costs the node its sessions: each setting that bgpd counts on is written out."""
    made = config.environment(bind=[ip_address("0.0.0.0"), ip_address("::")], port=1790)
    assert {name: made[f"exabgp.{name}"] for name in ("daemon.user", "daemon.drop")} == {
        "daemon.user": "root",  # "nobody" cannot read the configuration at a reload
        "daemon.drop": "false",
    }
    api = {name.removeprefix("exabgp.api."): value for name, value in made.items() if name.startswith("exabgp.api.")}
    assert api == {"ack": "true", "chunk": "1000", "show-routes-format": "v2", "cli": "false"}
    assert made["exabgp.log.level"] == "WARNING"
    assert (made["exabgp.tcp.bind"], made["exabgp.tcp.port"]) == ("0.0.0.0 ::", "1790")


def test_exabgp_knows_each_of_our_settings() -> None:
    """A name that ExaBGP does not know would be passed over in silence, so each is looked up where it keeps them."""
    code = "import os; from exabgp.environment import getenv; e = getenv(); print(*(repr(%s) for _ in '1'))"
    wanted = "(e.daemon.user, e.daemon.drop, e.api.ack, e.api.chunk, e.api.show_routes_format, e.api.cli, e.log.level)"
    made = config.environment(bind=[HERE], port=179)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code % wanted], env=made, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "('root', False, True, 1000, 'v2', False, 'WARNING')"
