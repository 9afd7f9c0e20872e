"""Why a session is not up, in words that lead somewhere. Pure."""

from __future__ import annotations

from typing import Final

from calipy.bgp.peering import Session

_ERRORS: Final = {
    1: "message header error",
    2: "OPEN error",
    3: "UPDATE error",
    4: "hold timer expired",
    5: "state machine error",
    6: "cease",
}
_SUBCODES: Final = {
    (2, 2): "bad peer AS: AS numbers of the two ends do not match",
    (2, 3): "bad BGP identifier: both ends have one router ID",
    (2, 6): "unacceptable hold time",
    (6, 1): "maximum number of prefixes reached",
    (6, 2): "administrative shutdown",
    (6, 3): "peer de-configured",
    (6, 4): "administrative reset",
    (6, 5): "connection rejected: the peer does not know us under this address",
    (6, 7): "connection collision",
    (6, 8): "out of resources",
}


def explain_loss(reason: str, session: Session, *, was_up: bool) -> str:
    """ExaBGP's reason for ``down`` in words that lead somewhere."""
    if reason.startswith("closing connection"):
        if was_up:
            return "connection lost"
        if session.passive:
            return "the peer closed the connection"
        key = ", and have our key" if session.password else ""
        return (
            f"connection refused or closed by the peer: does it listen on port {session.port}, know us, "
            f"speak AS {session.peer_as} and expect AS {session.local_as}{key}?"
        )
    if reason.startswith("graceful restarted negotiated"):
        return "closed to be set up anew; if it stays so, the ends disagree on the key or do not reach each other"
    for direction, words in (("notification received", "the peer says"), ("notification sent", "we said")):
        if reason.startswith(direction):
            numbers = [int(part) for part in reason.partition("(")[2].partition(")")[0].split(",") if part.isdigit()]
            if len(numbers) == 2:
                return explain_notification(words, numbers[0], numbers[1], "")
    return reason[:200]


def explain_notification(who: str, code: int, subcode: int, text: str) -> str:
    """What a NOTIFICATION says (RFC 4271 4.5, RFC 4486), and who said it."""
    what = _SUBCODES.get((code, subcode)) or _ERRORS.get(code, "unknown error")
    said = "".join(char for char in text if char.isprintable())
    return f"{who}: {what} ({code}/{subcode})" + (f" {said!r}" if said else "")
