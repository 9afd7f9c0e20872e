"""``calipy node status``: what the two daemons of this node say of themselves, as values and as text."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Any

from calipy import api_client
from calipy.errors import CalipyError
from calipy.node.settings import DEFAULT_HEALTH_PORT

ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Answers of the daemons' ``status`` methods; None with a reason for one that does not answer."""

    agent: dict[str, Any] | None
    agent_problem: str
    bgpd: dict[str, Any] | None
    bgpd_problem: str

    def document(self) -> dict[str, Any]:
        """For ``-o json`` and ``-o yaml``."""
        bgpd = self.bgpd or {}
        return {
            "agent": self.agent or {"pid": 0, "problem": self.agent_problem},
            "bgpd": {k: v for k, v in bgpd.items() if k != "peers"} or {"pid": 0, "problem": self.bgpd_problem},
            "bgp": {"peers": list(bgpd.get("peers", []))},
        }


def read() -> NodeStatus:
    """Ask both daemons. Blocks up to ANSWER_SECONDS for each that hangs."""
    agent, agent_problem = _ask(api_client.agent_socket())
    bgpd, bgpd_problem = _ask(api_client.bgpd_socket())
    return NodeStatus(agent, agent_problem, bgpd, bgpd_problem)


def _ask(path: Any) -> tuple[dict[str, Any] | None, str]:
    try:
        answer: dict[str, Any] = api_client.call(path, "status", timeout=ANSWER_SECONDS)
        return answer, ""
    except CalipyError as error:
        return None, str(error)


def readiness(host: str = "localhost", port: int = DEFAULT_HEALTH_PORT) -> tuple[bool, str]:
    """The agent's ``/readiness``: ready or not, and the table it shows, or why there is none."""
    try:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        connection.request("GET", "/readiness")
        answer = connection.getresponse()
        return answer.status == http.client.OK, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"the agent does not answer health checks on {host}:{port}: {error}\n"


def peer_table(peers: list[dict[str, Any]], family: int) -> str:
    """BGP peers of one family in calicoctl's shape (pure)."""
    of_family = [p for p in peers if (":" in p["address"]) == (family == 6)]
    if not of_family:
        return f"No IPv{family} peers found.\n"
    heads = ("PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO")
    rows = [
        (p["address"], p["type"], p["state"], str(p["since"]), p["info"])
        for p in sorted(of_family, key=lambda p: (p["type"], p["address"]))
    ]
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    rule = "+" + "+".join("-" * (w + 2) for w in widths) + "+\n"
    head = "|" + "|".join(f" {h.center(w)} " for h, w in zip(heads, widths, strict=True)) + "|\n"
    body = "".join("|" + "|".join(f" {c.ljust(w)} " for c, w in zip(row, widths, strict=True)) + "|\n" for row in rows)
    return f"IPv{family} BGP status\n{rule}{head}{rule}{body}{rule}"


def text(status: NodeStatus) -> str:
    """The whole status as people read it (pure)."""
    lines = []
    if status.agent is None:
        lines.append(f"calipy agent does not answer: {status.agent_problem}")
    else:
        endpoints = status.agent["felix"]["endpoints"].values()
        up = sum(endpoint["state"] == "up" for endpoint in endpoints)
        lines.append(
            f"calipy agent is running (pid {status.agent['pid']}), {_state(status.agent)}; "
            f"{up} of {len(endpoints)} local endpoints up."
        )
        warnings = (*status.agent.get("warnings", ()), *status.agent["felix"].get("warnings", ()))
        lines += [f"warning: {warning}" for warning in warnings]
    if status.bgpd is None:
        lines.append(f"calipy bgpd does not answer: {status.bgpd_problem}")
        return "\n".join(lines) + "\n"
    speaker = status.bgpd["exabgp_pid"] or "not running"
    lines.append(f"calipy bgpd is running (pid {status.bgpd['pid']}, ExaBGP {speaker}), {_state(status.bgpd)}.")
    lines += [f"warning: {source}: {problem}" for source, problem in status.bgpd.get("problems", {}).items()]
    peers = status.bgpd.get("peers", [])
    return "\n".join(lines) + f"\n\n{peer_table(peers, 4)}\n{peer_table(peers, 6)}"


def _state(answer: dict[str, Any]) -> str:
    return "ready" if answer["ready"] else f"not ready: {'; '.join(answer['reasons'])}"
