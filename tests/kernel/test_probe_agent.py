"""Probes between two namespaces: what is answered, what is not, and which ports are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from calipy.conformance.netpol_case import parse_probe
from calipy.conformance.probe_agent import ProbeAgent, Request, unsupported
from tests.support.netns import Namespace, connect

pytestmark = pytest.mark.kernel

ALL = ("tcp/80", "udp/80", "sctp/80", "icmp/8", "icmp/8/1", "icmp/13", "tcp6/80", "udp6/80", "sctp6/80", "icmp6/128")
_LOSE_ENDINGS = """table inet t {
    chain out { type filter hook output priority 0; policy accept; tcp flags & rst == rst drop; }
    chain in { type filter hook input priority 0; policy accept; ct state invalid drop; }
}"""
CLIENT = {4: ip_address("10.9.0.1"), 6: ip_address("fd09::1")}
SERVER = {4: ip_address("10.9.0.2"), 6: ip_address("fd09::2")}
SILENCE = 0.9
"""Seconds without an answer after which none is expected any more."""
PATIENCE = 6.0
"""Seconds for what must be answered on a busy machine; no longer than it takes is waited."""


class Pair:
    """Client and server on one wire, and the agent that serves both."""

    def __init__(self, client: Namespace, server: Namespace) -> None:
        self.client, self.server = client, server
        connect(client, server, ("10.9.0.1/24", "10.9.0.2/24"), ("fd09::1/64", "fd09::2/64"))
        self.agent = ProbeAgent()

    def listen(self) -> None:
        for family in (4, 6):
            for protocol in ("tcp", "udp", "sctp", "icmp"):
                self.server.call(self.agent.listen, self.server.fd, SERVER[family], protocol, 80)

    def request(self, text: str) -> Request:
        probe = parse_probe(text)
        return Request(self.client.fd, CLIENT[probe.family], SERVER[probe.family], probe)

    def probe(self, *texts: str, deadline: float = SILENCE) -> list[Any]:
        return self.client.call(self.agent.probe, [self.request(text) for text in texts], deadline)

    def unanswered(self, *texts: str) -> list[str]:
        """Which of these are not answered, all of which should be."""
        answers = self.probe(*texts, deadline=PATIENCE)
        return [text for text, answer in zip(texts, answers, strict=True) if not answer.answered]

    def filter(self, *rules: str) -> None:
        self.server.run("nft", "-f", "-", stdin="\n".join(("table inet t {", *rules, "}")))


@pytest.fixture
def pair(make_netns: Callable[..., Namespace]) -> Iterator[Pair]:
    made = Pair(make_netns("client"), make_netns("server"))
    yield made
    made.agent.close_listeners()


def test_everything_is_answered_where_nothing_forbids_it(pair: Pair) -> None:
    """Each protocol of both families, all at once."""
    pair.listen()
    assert pair.unanswered(*ALL) == []


def test_silence_and_refusal(pair: Pair) -> None:
    """Dropped packets are not answered; without a listener TCP and UDP are refused; other ports are not confused."""
    for _ in range(5):  # a refusal may miss the deadline of a busy machine, as the runner allows for, too
        refusals = [(a.answered, a.refused) for a in pair.probe("tcp/80", "udp/80")]
        if refusals == [(False, True), (False, True)]:
            break
    assert refusals == [(False, True), (False, True)]
    pair.listen()
    assert not any(answer.answered for answer in pair.probe("tcp/81", "udp/81", "sctp/81"))
    pair.filter("chain in { type filter hook input priority 0; policy accept; ip protocol != icmp drop; }")
    assert [(a.answered, a.refused) for a in pair.probe("tcp/80", "udp/80", "sctp/80")] == [(False, False)] * 3
    assert pair.unanswered("icmp/8") == []


def test_one_lost_datagram_does_no_harm(pair: Pair) -> None:
    """What has no retransmission of its own is sent twice."""
    pair.listen()
    pair.filter(
        "chain in { type filter hook input priority 0; policy accept;",
        " udp dport 80 limit rate over 1/day burst 1 packets accept; udp dport 80 drop; }",
    )
    assert pair.unanswered("udp/80") == []


def test_client_ports_are_fresh_or_as_asked(pair: Pair) -> None:
    """No client port comes twice, and a fixed one is used."""
    pair.listen()
    pair.filter(
        "set seen { type inet_service; flags dynamic; }",
        "chain in { type filter hook input priority 0; policy accept;",
        " tcp sport 30005 accept; tcp flags syn / syn,ack tcp sport @seen drop;",
        " tcp dport 80 update @seen { tcp sport }; }",
    )
    assert pair.unanswered(*["tcp/80"] * 50, "tcp/80+sport=30005") == []
    assert pair.unanswered(*["tcp/80"] * 50, "tcp/80+sport=30005") == []
    assert "30005" not in pair.server.run("nft", "list", "set", "inet", "t", "seen")


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_a_fixed_port_may_be_one_that_is_listened_on(pair: Pair, protocol: str) -> None:
    """The client's port is the port on which the client itself answers others: both work, twice."""
    pair.listen()
    pair.client.call(pair.agent.listen, pair.client.fd, CLIENT[4], protocol, 80)
    back = Request(pair.server.fd, SERVER[4], CLIENT[4], parse_probe(f"{protocol}/80"))
    there = pair.request(f"{protocol}/80+sport=80")
    for _ in range(2):
        assert [one.answered for one in pair.client.call(pair.agent.probe, [there, back], PATIENCE)] == [True, True]


def test_what_is_left_of_a_connection_does_not_shut_its_port(pair: Pair) -> None:
    """A client's end was lost without a word: with new listeners the same fixed port is answered again."""
    pair.listen()
    pair.client.run("nft", "-f", "-", stdin=_LOSE_ENDINGS)
    fixed = "tcp/80+sport=30005"
    assert pair.unanswered(fixed) == []
    pair.agent.close_listeners()
    pair.listen()
    assert pair.unanswered(fixed) == []


@pytest.mark.parametrize("text", ["tcp/80", "udp6/80"])
def test_held_flow(pair: Pair, text: str) -> None:
    """A held connection is alive until packets are dropped, new listeners or not."""
    pair.listen()
    flow = pair.client.call(pair.agent.hold, pair.request(text))
    assert flow
    assert pair.client.call(pair.agent.alive, flow)
    pair.agent.close_listeners()
    pair.listen()
    assert pair.client.call(pair.agent.alive, flow)
    pair.filter("chain in { type filter hook input priority 0; policy accept; tcp dport 80 drop; udp dport 80 drop; }")
    assert not pair.client.call(pair.agent.alive, flow)
    pair.agent.release(flow)


def test_unsupported() -> None:
    """Requests that no kernel answers are told apart."""
    assert not any(unsupported(parse_probe(text)) for text in ALL)
    assert "type 17" in unsupported(parse_probe("icmp/17"))
