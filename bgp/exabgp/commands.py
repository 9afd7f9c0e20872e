"""Commands for ExaBGP's API, built from typed values only. Pure.

The grammar is dangerous: the word ``json`` where it does not belong ends the daemon, and a byte outside ASCII ends the
API process. So there is no way to put text of users or peers into a command, and ``checked`` looks at every line once
more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from calipy.bgp.path import Attributes, Segment
from calipy.net import Family, IPAddress, Prefix

SHOW_NEIGHBOURS: Final = "show neighbor json"
SHOW_ADJ_RIB_IN: Final = "show adj-rib in json"
SHOW_ADJ_RIB_OUT: Final = "show adj-rib out json"
VERSION: Final = "version"
RELOAD: Final = "reload"
SHUTDOWN: Final = "shutdown"

_MAY_SAY_JSON: Final = frozenset({SHOW_NEIGHBOURS, SHOW_ADJ_RIB_IN, SHOW_ADJ_RIB_OUT})

NLRI_PER_COMMAND: Final = 100
"""10 to 100 prefixes a command, with few commands outstanding, is where ExaBGP is fastest."""
PEERS_PER_COMMAND: Final = 50
"""Selecting costs peers x selectors in ExaBGP."""
WINDOW: Final = 3
"""Commands of many prefixes that may be outstanding."""
LONGEST: Final = 16 * 1024
"""Longest line built here; ExaBGP reads its commands 16 KB at a time and dies of 1 MB without a newline."""


def announce(attributes: Attributes, prefixes: Iterable[Prefix], peers: Sequence[IPAddress] | None) -> Iterator[str]:
    """Announce prefixes that share attributes.

    Args:
        attributes: what to send; without an AS_PATH, ExaBGP sends what the session's kind asks for (ours to eBGP).
        prefixes: of the next hop's family.
        peers: whom to tell; None for every configured peer.
    """
    words = _attributes(attributes)
    yield from _for_peers(f"announce attributes {words} nlri", prefixes, peers)


def withdraw(attributes: Attributes, prefixes: Iterable[Prefix], peers: Sequence[IPAddress] | None) -> Iterator[str]:
    """Withdraw prefixes that were announced with these attributes.

    ExaBGP leaves withdrawals out of the first updates that it sends on a new session, so that a withdrawal must
    displace an announcement still queued, for a peer that is away for example. ``launch.keep_last`` sees to that.
    """
    yield from _for_peers(f"withdraw attributes {_attributes(attributes)} nlri", prefixes, peers)


def end_of_rib(peer: IPAddress, family: Family) -> str:
    """End-of-RIB to one peer, which must be established when the line is read."""
    return checked(f"neighbor {peer} announce eor ipv{family} unicast")


def checked(line: str) -> str:
    """The line itself, if it can do no harm.

    Raises:
        ValueError: it could; a bug of the builder, never of a user.
    """
    if not line.isascii() or not line.isprintable() or len(line) > LONGEST:
        raise ValueError(f"not a line for ExaBGP: {line!r:.80}")
    if "json" in line and line not in _MAY_SAY_JSON:
        raise ValueError(f"ExaBGP would exit on {line!r:.80}")
    return line


def _for_peers(words: str, prefixes: Iterable[Prefix], peers: Sequence[IPAddress] | None) -> Iterator[str]:
    groups: list[str] = [""]
    if peers is not None:
        groups = [
            ", ".join(f"neighbor {peer}" for peer in peers[start : start + PEERS_PER_COMMAND]) + " "
            for start in range(0, len(peers), PEERS_PER_COMMAND)
        ]
    ordered = iter(prefixes)
    while chunk := list(islice(ordered, NLRI_PER_COMMAND)):
        nlri = " ".join(map(str, chunk))
        for selector in groups:
            yield checked(f"{selector}{words} {nlri}")


def _attributes(attributes: Attributes) -> str:
    words = [f"origin {attributes.origin}"]
    if attributes.as_path:
        words.append(f"as-path [ {' '.join(_segment(segment) for segment in attributes.as_path)} ]")
    if attributes.med is not None:
        words.append(f"med {attributes.med}")
    if attributes.local_preference is not None:
        words.append(f"local-preference {attributes.local_preference}")
    if attributes.communities:
        words.append(f"community [ {' '.join(f'{high}:{low}' for high, low in attributes.communities)} ]")
    if attributes.large_communities:
        large = " ".join(":".join(map(str, community)) for community in attributes.large_communities)
        words.append(f"large-community [ {large} ]")
    if attributes.originator_id is not None:
        words.append(f"originator-id {attributes.originator_id}")
    if attributes.cluster_list:
        words.append(f"cluster-list [ {' '.join(map(str, attributes.cluster_list))} ]")
    words.append(f"next-hop {attributes.next_hop}")
    return " ".join(words)


def _segment(segment: Segment) -> str:
    numbers = " ".join(map(str, segment.numbers))
    return numbers if segment.kind == "sequence" else f"( {numbers} )"
