"""ExaBGP's neighbours: which are wanted, which it refuses, and what it has loaded of them. An edge: files, runs ExaBGP.

One bad section must not keep the others from being loaded: what ExaBGP refuses is found and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from calipy import log
from calipy.bgp.exabgp import config
from calipy.bgp.exabgp.config import SpeakerSession
from calipy.bgp.exabgp.process import Paths, install, objection
from calipy.net import IPAddress

logger = log.get("bgp.speaker")

RELOAD_QUIET: Final = 0.3
RELOAD_DELAY: Final = 3.0
"""Nodes join in bursts: a reload waits until nothing has changed for ``RELOAD_QUIET``, at most ``RELOAD_DELAY``."""


class Neighbours:
    """Sessions as they should be, against the sections of its configuration that ExaBGP has loaded.

    Attributes:
        loaded: the section of each neighbour; None while that is not known.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._wanted: dict[IPAddress, SpeakerSession] = {}
        self._refused: dict[SpeakerSession, str] = {}
        self._sections: Mapping[IPAddress, str] = {}
        self._given_up: Mapping[IPAddress, str] | None = None
        self._changed_at = self._first_changed_at = 0.0
        self.loaded: Mapping[IPAddress, str] | None = None

    def wanted(self) -> Mapping[IPAddress, SpeakerSession]:
        """What was wanted last."""
        return self._wanted

    def want(self, sessions: Mapping[IPAddress, SpeakerSession], now: float) -> bool:
        """Want these; whether one that was taken away and is still loaded is wanted again: ExaBGP has kept it."""
        if not self.due():
            self._first_changed_at = now
        self._changed_at = now
        returned = any(peer not in self._wanted for peer in sessions.keys() & (self.loaded or {}).keys())
        self._wanted = dict(sessions)
        self._render()
        return returned

    def refused(self) -> Mapping[IPAddress, str]:
        """Peers whose sections ExaBGP does not take, so that they are left out, and what it says of each."""
        return {one.session.peer: reason for one, reason in self._refused.items()}

    def due(self) -> bool:
        """Whether a reload would change something. Not while nothing is known of what is loaded."""
        return self.loaded is not None and self._sections not in (self.loaded, self._given_up)

    def delay(self, now: float) -> float:
        """Seconds to wait for more changes before the reload that is due."""
        return min(self._changed_at + RELOAD_QUIET, self._first_changed_at + RELOAD_DELAY) - now

    async def install(self) -> tuple[str, Mapping[IPAddress, str]]:
        """Put the configuration in place without what ExaBGP refuses; what is still wrong with it, and its sections."""
        self._refused = {one: reason for one, reason in self._refused.items() if one in self._wanted.values()}
        usable = self._usable()
        problem = await self._write(usable)
        if problem and (bad := await refused(self._paths, usable)):
            for one in usable:
                if reason := bad.get(one.session.peer):
                    logger.error("neighbour refused, left out", peer=str(one.session.peer), reason=reason)
                    self._refused[one] = reason
            usable = [one for one in usable if one not in self._refused]
            problem = await self._write(usable)
        self._render()  # sessions may have changed meanwhile
        sections = config.neighbours(usable)
        self._given_up = sections if problem else None
        return problem, sections

    def find(self, peers: Collection[IPAddress]) -> None:
        """Neighbours of an adopted ExaBGP. What it was configured with is in its file; that says more than they do.

        Unless a bgpd was killed between writing the file and seeing it loaded: then nothing is taken for loaded.
        """
        try:
            text = "" if self._paths.reloading.exists() else self._paths.configuration.read_text()
        except OSError:
            text = ""
        sections = {peer: self._sections.get(peer, "") for peer in peers}
        self.loaded = {peer: section if section in text else "" for peer, section in sections.items()}

    def _usable(self) -> list[SpeakerSession]:
        return [one for one in self._wanted.values() if one not in self._refused]

    def _render(self) -> None:
        self._sections = config.neighbours(self._usable())

    async def _write(self, sessions: Iterable[SpeakerSession]) -> str:
        return await install(self._paths, config.render(sessions, self._paths.relay_argv()))


async def refused(paths: Paths, sessions: Sequence[SpeakerSession]) -> Mapping[IPAddress, str]:
    """The peers whose sections ExaBGP does not take, and what it says of each.

    By halves: about 2 log2(sessions) runs of ExaBGP for each bad one. Sections that are refused only together are
    not found.
    """
    candidate = paths.directory / "exabgp.conf.check"
    problem = await objection(candidate, config.render(sessions, paths.relay_argv()))
    candidate.unlink(missing_ok=True)
    if not problem:
        return {}
    if len(sessions) == 1:
        return {sessions[0].session.peer: problem}
    middle = len(sessions) // 2
    return {**await refused(paths, sessions[:middle]), **await refused(paths, sessions[middle:])}
