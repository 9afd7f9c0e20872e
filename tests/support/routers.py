"""BIRD, FRR and GoBGP in namespaces, configured as the manual says; Debian's packages bird2, frr and gobgpd.

Each router is asked the same things: its best paths, communities, kernel; and can be killed and started as one that
restarts gracefully.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from calipy.net import Prefix
from tests.support.bgp import ROOT, BgpLab, Program, eventually
from tests.support.netns import Namespace

Place = Literal["reflector", "ToR", "node"]
Best = dict[str, tuple[str, str]]

FRR = Path("/usr/lib/frr")
PROGRAMS = {"BIRD": ("bird", "birdc"), "FRR": (f"{FRR}/bgpd", f"{FRR}/zebra", "vtysh"), "GoBGP": ("gobgpd", "gobgp")}

NO_BGP = """
table inet hold {
  chain in { type filter hook input priority 0; iif lo accept; tcp dport 179 drop; tcp sport 179 drop; }
}
"""


def sample(title: str) -> str:
    """A configuration out of the manual: the fenced block whose first line ends with ``title``, on the lab's subnet."""
    text = (ROOT / "docs" / "bgp-routers.md").read_text()
    for block in re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if block.partition("\n")[0].lstrip("#! ") == title:
            return str(block).replace("10.0.0.", "10.77.1.").replace("fd00:10::", "fd77:1::")
    raise AssertionError(f"docs/bgp-routers.md has no sample {title!r}")


def need(kind: str) -> None:
    """Skip the test unless the programs of a router are installed."""
    missing = [program for program in PROGRAMS[kind] if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages bird2, frr, gobgpd)")


def of_family(prefixes: Iterable[str], family: int) -> list[Prefix]:
    """Those of one family."""
    return [one for one in map(ipaddress.ip_network, prefixes) if one.version == family]


class Router(ABC):
    """A router of another make.

    Attributes:
        ns: where it runs.
        kernel_protocol: the number its kernel routes carry, 0 if it writes none.
    """

    kernel_protocol = 0

    def __init__(self, lab: BgpLab, namespace: Namespace, place: Place) -> None:
        self.lab = lab
        self.ns = namespace
        self.place = place

    @abstractmethod
    def start(self, originated: Iterable[str], *, restarting: bool = False) -> None:
        """Start it; it announces these prefixes besides what its sample has it announce."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL."""

    @abstractmethod
    def best(self, family: int) -> Best:
        """Next hop and AS path of each best path that BGP told it; ``{}`` while it does not answer."""

    @abstractmethod
    def communities(self, prefix: str) -> set[str]:
        """Communities of a prefix's best path: ``64512:7``, ``64512:1:2``."""

    @abstractmethod
    def watch(self) -> Watch:
        """Watch for the loss of routes: in its kernel, or in its RIB if it has none."""

    def kernel(self, family: int) -> dict[str, str]:
        """Gateways of its routes in the kernel."""
        routes = self.ns.routes.dump(protocol=self.kernel_protocol, family=family)
        return {str(route.dst): str(route.next_hops[0].gateway) for route in routes if route.next_hops}


class Watch:
    """Routes that a program reported as gone, since it stands."""

    def __init__(self, program: Program, mark: str) -> None:
        self._program = program
        self._mark = mark

    def stop(self, *prefixes: str) -> list[str]:
        """End it; what was reported of these prefixes."""
        self._program.kill(signal.SIGTERM)
        lines = self._program.log.read_text().splitlines()
        return [line for line in lines if self._mark in line and any(prefix in line for prefix in prefixes)]


def watch_kernel(lab: BgpLab, namespace: Namespace) -> Watch:
    """Watch a namespace's routes."""
    program = lab.run(namespace, "ip", "-o", "monitor", "route", label=f"watch{len(lab.programs)}")

    def reported() -> bool:  # it stands once it reports a route that comes and goes for it
        namespace.run("ip", "route", "add", "blackhole", "198.18.0.99")
        namespace.run("ip", "route", "del", "blackhole", "198.18.0.99")
        return "198.18.0.99" in program.log.read_text()

    eventually("ip monitor reports", reported)
    return Watch(program, "Deleted")


class BirdRouter(Router):
    """BIRD."""

    kernel_protocol = 12

    def start(self, originated: Iterable[str], *, restarting: bool = False) -> None:
        here = "in place of a node" if self.place == "node" else f"as {self.place}"
        text = sample(f"BIRD {here}")
        for prefix in originated:
            channel = "ipv6" if ":" in prefix else "ipv4"
            mark = "bgp_community.add((64500, 5)); bgp_large_community.add((64500, 5, 6)); accept;"
            text += f"protocol static {{ {channel} {{ import filter {{ {mark} }}; }}; route {prefix} blackhole; }}\n"
        if restarting:
            self._bird.write(text)
            self._bird.start("-R")
        else:
            self._bird = self.lab.bird(self.ns, text)

    def kill(self) -> None:
        self._bird.program.kill()

    def best(self, family: int) -> Best:
        found: Best = {}
        prefix = path = ""
        for line in self._bird.ask("show route all", check=False).splitlines():
            if line[:1].isalnum() and "/" in line.split()[0]:
                prefix = line.split()[0] if " * " in line else ""
            elif "BGP.as_path:" in line:
                path = line.partition(":")[2].strip()
            elif "BGP.next_hop:" in line and prefix and (":" in prefix) == (family == 6):
                found[prefix] = (line.split()[1], path)
        return found

    def communities(self, prefix: str) -> set[str]:
        told = self._bird.ask(f"show route all {prefix}", check=False)
        lines = [line for line in told.splitlines() if "community:" in line]
        return {":".join(re.findall(r"\d+", one)) for line in lines for one in re.findall(r"\(.*?\)", line)}

    def watch(self) -> Watch:
        return watch_kernel(self.lab, self.ns)


class FrrRouter(Router):
    """zebra and bgpd of FRR."""

    kernel_protocol = 186

    def start(self, originated: Iterable[str], *, restarting: bool = False) -> None:
        here = "in place of a node" if self.place == "node" else f"as {self.place}"
        text = sample(f"FRR {here}")
        header = next(line for line in text.splitlines() if line.startswith("router bgp"))
        text += "route-map marked permit 10\n set community 64500:5\n set large-community 64500:5:6\nexit\n"
        for prefix in originated:
            channel = "ipv6" if ":" in prefix else "ipv4"
            text += f"{header}\n address-family {channel} unicast\n  network {prefix} route-map marked\n"
            text += " exit-address-family\nexit\n"
        self._directory = self.lab.directory / "frr"
        self._directory.mkdir(exist_ok=True)
        (self._directory / "zebra.conf").write_text("")
        (self._directory / "bgpd.conf").write_text(text)
        # They insist on being members of the group frrvty, and give up root themselves.
        self.lab.directory.chmod(0o711)
        for path in (self._directory, *self._directory.iterdir()):
            shutil.chown(path, "frr", "frr")
        if not restarting:
            self._run("zebra")
        self._bgpd = self._run("bgpd")

    def _run(self, name: str) -> Program:
        at = str(self._directory)
        (self._directory / f"{name}.vty").unlink(missing_ok=True)
        program = self.lab.run(
            self.ns,
            str(FRR / name), "-u", "frr", "-g", "frr", "-f", f"{at}/{name}.conf", "-i", f"{at}/{name}.pid",
            "-z", f"{at}/zserv.api", "--vty_socket", at, "-P", "0", "--log", "stdout",
            label=f"frr-{name}",
        )  # fmt: skip
        eventually(f"{name} answers", (self._directory / f"{name}.vty").exists)
        return program

    def kill(self) -> None:
        self._bgpd.kill()

    def show(self, command: str) -> dict[str, Any]:
        """The answer of ``show COMMAND json``."""
        argv = ["vtysh", "--vty_socket", str(self._directory), "-d", "bgpd", "-c", f"show {command} json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            return {}
        return found

    def best(self, family: int) -> Best:
        routes: dict[str, list[dict[str, Any]]] = self.show(f"bgp ipv{family} unicast").get("routes", {})
        return {
            prefix: (next(hop["ip"] for hop in path["nexthops"] if hop.get("used", True)), path["path"])
            for prefix, paths in routes.items()
            for path in paths
            if path.get("bestpath") and path.get("peerId") != "(unspec)"
        }

    def communities(self, prefix: str) -> set[str]:
        channel = "ipv6" if ":" in prefix else "ipv4"
        found = set()
        for path in self.show(f"bgp {channel} unicast {prefix}").get("paths", []):
            for name in ("community", "largeCommunity"):
                found |= set(path.get(name, {}).get("string", "").split())
        return found

    def watch(self) -> Watch:
        return watch_kernel(self.lab, self.ns)


class GoBgpRouter(Router):
    """gobgpd; it has no kernel table."""

    def start(self, originated: Iterable[str], *, restarting: bool = False) -> None:
        text = sample("GoBGP as reflector")
        if self.place != "reflector":  # as the manual says below the sample
            text = re.sub(r"  \[peer-groups.route-reflector.config\]\n.*\n.*\n", "", text)
        if self.place == "ToR":
            text = text.replace("  as = 64512", "  as = 65001")
        if self.place == "node":
            text = re.sub(r"  \[peer-groups.transport.config\]\n.*\n", "", text)
        file = self.lab.directory / "gobgp.toml"
        file.write_text(text)
        # No session until its routes are there.
        self.ns.run("nft", "-f", "-", stdin=NO_BGP)
        flags = ("-r",) if restarting else ()
        self._program = self.lab.run(
            self.ns,
            "gobgpd", "-f", str(file), "--api-hosts", "127.0.0.1:50051", "--pprof-disable", "-p", *flags,
            label="gobgp",
        )  # fmt: skip
        eventually("gobgpd answers", lambda: self._ask("global", "-j") is not None)
        for prefix in (*self._own(), *originated):
            self._call(
                "global", "rib", "add", "-a", "ipv6" if ":" in prefix else "ipv4", prefix,
                "community", "64500:5", "large-community", "64500:5:6",
            )  # fmt: skip
        self.ns.run("nft", "delete", "table", "inet", "hold")

    def _own(self) -> tuple[str, ...]:
        """What the samples of the others have them announce."""
        of: dict[Place, tuple[str, ...]] = {
            "reflector": (),
            "ToR": ("0.0.0.0/0", "::/0"),
            "node": ("10.244.9.0/26", "fd00:244:0:9::/122"),
        }
        return of[self.place]

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net={self.ns.path}", "gobgp", "-u", "127.0.0.1", *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)

    def _ask(self, *command: str) -> Any:
        done = self._call(*command)
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except json.JSONDecodeError:
            return None

    def kill(self) -> None:
        self._program.kill()

    def best(self, family: int) -> Best:
        found = {}
        for prefix, paths in (self._ask("global", "rib", "-a", f"ipv{family}", "-j") or {}).items():
            attributes = {one["type"]: one for one in paths[0]["attrs"]}
            reach = attributes.get(14)
            hop = reach["nexthop"] if reach else attributes[3]["nexthop"]
            numbers = [str(asn) for segment in attributes.get(2, {}).get("as_paths", ()) for asn in segment["asns"]]
            if hop not in ("0.0.0.0", "::"):
                found[prefix] = (hop, " ".join(numbers))
        return found

    def communities(self, prefix: str) -> set[str]:
        family = "ipv6" if ":" in prefix else "ipv4"
        found = set()
        for path in (self._ask("global", "rib", "-a", family, "-j") or {}).get(prefix, [])[:1]:
            for attribute in path["attrs"]:
                if attribute["type"] == 8:
                    found |= {f"{one >> 16}:{one & 0xFFFF}" for one in attribute["communities"]}
                if attribute["type"] == 32:
                    parts = [
                        one if isinstance(one, str) else ":".join(map(str, one.values())) for one in attribute["value"]
                    ]
                    found |= set(parts)
        return found

    def watch(self) -> Watch:
        argv = ["stdbuf", "-oL", "gobgp", "-u", "127.0.0.1", "monitor", "global", "rib"]
        return Watch(self.lab.run(self.ns, *argv, label=f"watch{len(self.lab.programs)}"), "DEL")


ROUTERS: dict[str, type[Router]] = {"BIRD": BirdRouter, "FRR": FrrRouter, "GoBGP": GoBgpRouter}
