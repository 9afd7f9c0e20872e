"""Which sessions ExaBGP refuses: one bad section must not keep the others from being loaded. An edge: runs ExaBGP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calipy.bgp.exabgp import config
from calipy.bgp.exabgp.config import SpeakerSession
from calipy.bgp.exabgp.process import Paths, objection
from calipy.net import IPAddress


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
