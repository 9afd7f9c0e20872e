"""FRR and GoBGP in namespaces, beside BIRD, for the tests of BGP; Debian's packages frr and gobgpd."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.bgp import ROOT, BgpLab, eventually
from tests.support.netns import Namespace

FRR = Path("/usr/lib/frr")


def sample(title: str) -> str:
    """A configuration out of the manual: the fenced block whose first line ends with ``title``, on the lab's subnet."""
    text = (ROOT / "docs" / "bgp.md").read_text()
    for block in re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if block.partition("\n")[0].lstrip("#! ") == title:
            return str(block).replace("10.0.0.", "10.77.1.")
    raise AssertionError(f"docs/bgp.md has no sample {title!r}")


def need(*programs: str | Path) -> None:
    """Skip the test unless these programs are installed."""
    missing = [str(program) for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages frr and gobgpd)")


class Frr:
    """zebra and bgpd of FRR."""

    def __init__(self, lab: BgpLab, namespace: Namespace, configuration: str, label: str = "frr") -> None:
        need(FRR / "bgpd", FRR / "zebra", "vtysh")
        self.ns = namespace
        self._directory = lab.directory / label
        self._directory.mkdir()
        (self._directory / "zebra.conf").write_text("")
        (self._directory / "bgpd.conf").write_text(configuration)
        # They insist on being members of the group frrvty, and give up root themselves.
        lab.directory.chmod(0o711)
        for path in (self._directory, *self._directory.iterdir()):
            shutil.chown(path, "frr", "frr")
        directory = str(self._directory)
        for name in ("zebra", "bgpd"):
            lab.run(
                namespace,
                str(FRR / name), "-u", "frr", "-g", "frr", "-f", f"{directory}/{name}.conf",
                "-i", f"{directory}/{name}.pid", "-z", f"{directory}/zserv.api", "--vty_socket", directory,
                "-P", "0", "--log", "stdout",
                label=f"{label}-{name}",
            )  # fmt: skip
            eventually(f"{name} answers", lambda name=name: (self._directory / f"{name}.vty").exists())

    def show(self, command: str) -> dict[str, Any]:
        """The answer of ``show COMMAND json``."""
        argv = ["vtysh", "--vty_socket", str(self._directory), "-d", "bgpd", "-c", f"show {command} json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            return {}
        return found

    def best(self, family: str = "ipv4") -> dict[str, tuple[str, str]]:
        """Next hop and AS path of each best path."""
        routes: dict[str, list[dict[str, Any]]] = self.show(f"bgp {family} unicast").get("routes", {})
        return {
            prefix: (next(hop["ip"] for hop in path["nexthops"] if hop.get("used", True)), path["path"])
            for prefix, paths in routes.items()
            for path in paths
            if path.get("bestpath")
        }


class GoBgp:
    """gobgpd."""

    def __init__(self, lab: BgpLab, namespace: Namespace, configuration: str, label: str = "gobgp") -> None:
        need("gobgpd", "gobgp")
        self.ns = namespace
        file = lab.directory / f"{label}.toml"
        file.write_text(configuration)
        lab.run(
            namespace, "gobgpd", "-f", str(file), "--api-hosts", "127.0.0.1:50051", "--pprof-disable", "-p",
            label=label,
        )  # fmt: skip
        eventually("gobgpd answers", lambda: self._ask("global", "-j") is not None)

    def _ask(self, *command: str) -> Any:
        argv = ["nsenter", f"--net={self.ns.path}", "gobgp", "-u", "127.0.0.1", *command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except json.JSONDecodeError:
            return None

    def add(self, prefix: str, *attributes: str) -> None:
        """Announce a prefix."""
        argv = ["nsenter", f"--net={self.ns.path}", "gobgp", "-u", "127.0.0.1", "global", "rib", "add", prefix]
        subprocess.run([*argv, *attributes], check=True, timeout=10)

    def best(self, family: str = "ipv4") -> dict[str, tuple[str, str]]:
        """Next hop and AS path of each best path."""
        found = {}
        for prefix, paths in (self._ask("global", "rib", "-a", family, "-j") or {}).items():
            attributes = {one["type"]: one for one in paths[0]["attrs"]}
            reach = attributes.get(14)
            hop = reach["nexthop"] if reach else attributes[3]["nexthop"]
            numbers = [str(asn) for segment in attributes.get(2, {}).get("as_paths", ()) for asn in segment["asns"]]
            found[prefix] = (hop, " ".join(numbers))
        return found
