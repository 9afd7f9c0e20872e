"""What the commands print: tables as containerlab draws them, JSON, CSV, graphs. Pure."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from calipy.containerlab.model import Topology

NOT_AVAILABLE = "N/A"
UNKNOWN_LAB = "_unknown_lab_"
CSV_HEADER = (
    *("lab_name", "labPath", "absLabPath", "name", "container_id", "image", "kind", "state", "status"),
    *("ipv4_address", "ipv6_address", "owner"),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, separate: bool = True, merge: int = 0) -> str:
    """A box with rounded corners; cells may have several lines.

    Args:
        header: titles, centred.
        rows: texts.
        separate: a line between rows.
        merge: in so many columns from the left, a cell like the one above is drawn as one with it.
    """
    grid = [[cell.split("\n") for cell in row] for row in rows]
    widths = [
        max(len(line) for row in [[[title] for title in header], *grid] for line in row[n]) for n in range(len(header))
    ]
    fill = ["─" * (width + 2) for width in widths]
    lines = [f"╭{'┬'.join(fill)}╮", f"│{'│'.join(f' {t.center(w)} ' for t, w in zip(header, widths, strict=True))}│"]
    above: list[list[str]] | None = None
    for row in grid:
        joined = [n < merge and above is not None and row[n] == above[n] for n in range(len(row))]
        if above is None:
            lines.append(f"├{'┼'.join(fill)}┤")
        elif separate:
            lines.append(_separator(fill, joined))
        height = max(len(cell) for cell in row)
        for number in range(height):
            cells = ["" if joined[n] or number >= len(cell) else cell[number] for n, cell in enumerate(row)]
            lines.append(f"│{'│'.join(f' {cell.ljust(w)} ' for cell, w in zip(cells, widths, strict=True))}│")
        above = row
    lines.append(f"╰{'┴'.join(fill)}╯")
    return "\n".join(lines) + "\n"


def _separator(fill: Sequence[str], joined: Sequence[bool]) -> str:
    """The line between two rows; columns of joined cells stay open."""
    line = "│" if joined[0] else "├"
    for number, part in enumerate(fill):
        line += " " * len(part) if joined[number] else part
        if number + 1 == len(fill):
            return line + ("│" if joined[number] else "┤")
        left, right = joined[number], joined[number + 1]
        line += {(True, True): "│", (True, False): "├", (False, True): "┤", (False, False): "┼"}[left, right]
    return line


def plan_table(rows: Sequence[tuple[str, str]]) -> str:
    """What a deploy changed, or would change."""
    return table(["Action", "Details"], rows, separate=False)


def short_path(path: str, directory: str) -> str:
    """``path`` relative to ``directory`` where that is shorter."""
    if not path:
        return ""
    relative = os.path.relpath(path, directory)
    return relative if len(relative) < len(path) else path


def details(containers: Sequence[Mapping[str, Any]], directory: str) -> list[dict[str, Any]]:
    """The nodes as ``inspect`` tells them, by lab and name; empty group and owner are left out.

    Args:
        containers: as the driver has them; one without ``lab`` is the host itself.
        directory: where the caller is.
    """
    shown = []
    for container in sorted(containers, key=lambda c: (c.get("lab", ""), c["name"])):
        entry = {
            "lab_name": container.get("lab", ""),
            "labPath": short_path(container.get("file", ""), directory),
            "absLabPath": container.get("file", ""),
            "name": container["name"],
            "container_id": container["id"][:12],
            "image": container["image"],
            "kind": container["kind"],
            "group": container.get("group", ""),
            "state": container["state"],
            "status": container["status"],
            "ipv4_address": container["ipv4"],
            "ipv6_address": container["ipv6"],
            "owner": container.get("owner", ""),
        }
        shown.append({key: value for key, value in entry.items() if value})
    return shown


def inspect_json(entries: Sequence[Mapping[str, Any]]) -> str:
    """Nodes grouped by lab."""
    labs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        labs[entry.get("lab_name") or UNKNOWN_LAB].append(entry)
    return json.dumps(dict(sorted(labs.items())), indent=2, ensure_ascii=False) + "\n"


def inspect_csv(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line a node; an absent owner is an empty column."""
    lines = [",".join(CSV_HEADER)]
    lines += [",".join(str(entry.get(key, "")) for key in CSV_HEADER) for entry in entries]
    return "\n".join(lines) + "\n"


def inspect_table(entries: Sequence[Mapping[str, Any]], *, every: bool, wide: bool) -> str:
    """The summary: ``every`` adds topology and lab, ``wide`` adds the owner and keeps each node on one line."""
    header = ["Topology", "Lab Name"] * every + ["Owner"] * wide + ["Name", "Kind/Image", "State", "IPv4/6 Address"]
    rows = []
    for entry in entries:
        status = entry.get("status", "")
        health = f"({status})" if "health" in status else ""
        parts = [
            (entry["kind"], entry["image"]),
            (entry["state"], health),
            tuple(entry[key].partition("/")[0] if entry[key] != NOT_AVAILABLE else NOT_AVAILABLE
                  for key in ("ipv4_address", "ipv6_address")),
        ]  # fmt: skip
        joint = " " if wide else "\n"
        start = [entry.get("labPath", ""), entry.get("lab_name", "")] if every else []
        rows.append(
            [*start, *([entry.get("owner", "")] if wide else []), entry["name"], *(joint.join(p) for p in parts)]
        )
    return table(header, rows, merge=2 if every and not wide else 0)


def interfaces_table(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Interfaces of several nodes."""
    header = ["Container Name", "Name", "Alias", "MAC", "Index", "MTU", "Type", "State"]
    keys = ("name", "alias", "mac", "ifindex", "mtu", "type", "state")
    rows = [
        [node["name"], *(str(interface[key]) or NOT_AVAILABLE for key in keys)]
        for node in nodes
        for interface in node["interfaces"]
    ]
    return table(header, rows, merge=1)


def exec_json(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Results of commands by node; output that is JSON is embedded as such."""
    shown = {
        name: [
            {"cmd": list(r["argv"]), "return-code": r["code"], "stdout": _embedded(r["stdout"]), "stderr": r["stderr"]}
            for r in of_node
        ]
        for name, of_node in sorted(results.items())
    }
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


def _embedded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are no JSON


# --- graphs

_DIRECTIONS = ("TB", "TD", "BT", "RL", "LR")


def _edges(topology: Topology) -> list[tuple[str, str]]:
    return [(link.a.node, link.b.node) for link in topology.links if link.b is not None and link.type == "veth"]


def mermaid(topology: Topology, direction: str = "TD") -> str:
    """The topology as a Mermaid flow chart.

    Raises:
        ValueError: no such direction.
    """
    if direction not in _DIRECTIONS:
        raise ValueError(f"invalid direction {direction!r}: one of {', '.join(_DIRECTIONS)}")
    lines = ["---", f"title: {topology.name}", "---", f"graph {direction}"]
    lines += [f"  {a}---{b}" for a, b in _edges(topology)]
    return "\n".join(lines) + "\n"


def dot(topology: Topology, title: str) -> str:
    """The topology for Graphviz."""
    lines = [f"graph {json.dumps(title)} {{"]
    for a, b in sorted(_edges(topology)):
        colour = "blue" if "client" in a or "client" in b else "black"
        lines.append(f"\t{a}--{b}[ color={colour} ];")
    for node in topology.nodes.values():
        backbone = "bb" in node.group
        colour = "blue" if backbone else "red"
        attributes = {"color": colour, "fillcolor": colour, "label": node.name, "style": "filled", "xlabel": node.kind}
        if node.group.strip():
            attributes["group"] = node.group
        if backbone:
            attributes["fontcolor"] = "white"
        text = ", ".join(f"{key}={value}" for key, value in sorted(attributes.items()))
        lines.append(f"\t{node.name} [ {text} ];")
    return "\n".join([*lines, "", "}"]) + "\n"
