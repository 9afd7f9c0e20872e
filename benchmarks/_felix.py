"""What the benchmark of Felix works with: the kernel as seen from outside, the agent as a process, the bare tools."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import _cluster as data

from calipy.felix.dataplane.nfnetlink import HEADER_SIZE, NetfilterSocket
from calipy.felix.dataplane.nftables import NftablesReader
from calipy.kernel import netlink, netns, process
from calipy.kernel.netlink import NetlinkSocket
from calipy.kernel.routes import RouteTable

_NOT_INHERITED = ("ETCD", "FELIX", "CALI", "PYTHONDONTWRITEBYTECODE")
TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.0003
DISPATCH = (("cali-tw-", "cali-to-wl-dispatch", "-o"), ("cali-fw-", "cali-from-wl-dispatch", "-i"))


class Kernel:
    """Looks at the namespace of this process."""

    def __init__(self) -> None:
        self._rules = NftablesReader()
        self._sets = NetfilterSocket()
        self._netlink = NetlinkSocket()
        self._routes = RouteTable(self._netlink)

    def generation(self) -> int:
        return self._rules.generation()

    def chains(self) -> set[str]:
        """Names of the chains of IPv4's filter table."""
        of_table = netlink.text(1, "filter")
        found = self._rules.dump("list chains", 10 << 8 | 4, socket.AF_INET, of_table)
        return {netlink.attributes(body, HEADER_SIZE)[3][:-1].decode() for body in found}

    def rules(self, chain: str) -> tuple[str | None, ...] | None:
        return self._rules.rule_hashes(4, "filter", chain)

    def members(self, name: str) -> int:
        """How many a set has."""
        ask = netlink.attribute(1, b"\x06") + netlink.text(2, name) + netlink.attribute(6, b"\0\0\0\4")
        body = self._sets.get("size a set", 6 << 8 | 7, socket.AF_INET, ask)
        return int.from_bytes(netlink.attributes(netlink.attributes(body, HEADER_SIZE)[7])[24], "big")

    def routed(self, interfaces: set[str]) -> bool:
        """Whether each of the interfaces has a route."""
        return interfaces <= {hop.interface for route in self._routes.dump(family=4) for hop in route.next_hops}


def until(condition: Callable[[], bool], *, seconds: float = 120.0, pause: float = POLL) -> None:
    """Return as soon as it holds."""
    deadline = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError(condition)
        time.sleep(pause)


def compiled(directory: Path) -> dict[str, str]:
    """Variables with which Python keeps bytecode, as an installed program has it; the checkout stays clean."""
    return {"PYTHONPYCACHEPREFIX": str(directory / "bytecode")}


class AgentProcess:
    """The agent under test."""

    def __init__(self, program: str, url: str, directory: Path) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)},
            **compiled(directory),
            "ETCD_ENDPOINTS": url,
            "DATASTORE_TYPE": "etcdv3",
            "NODENAME": data.HOST,
            "IP": "172.16.0.1/24",
            "NO_DEFAULT_POOLS": "true",
            "FELIX_IPTABLESBACKEND": "nft",
            "CALIPY_RUN_DIR": str(directory),
            "CALIPY_LIB_DIR": str(directory),
        }
        argv = [str(Path(sys.executable).with_name("calipy")), "node", "run", "--only", "agent"]
        if program:
            argv = [program]
            environment |= {
                "FELIX_DATASTORETYPE": "etcdv3",
                "FELIX_ETCDENDPOINTS": url,
                "FELIX_FELIXHOSTNAME": data.HOST,
                "FELIX_DebugSkipCTLBCleanup": "true",
                "FELIX_LOGSEVERITYSCREEN": "error",
                "FELIX_LOGFILEPATH": "none",
            }
        with (directory / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def cpu(self) -> float:
        """Seconds used by it and the programs that it has waited for."""
        fields = self._stat()
        return sum(map(int, fields[11:15])) / TICKS

    def _stat(self) -> list[str]:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()

    def peak(self) -> float:
        """Largest resident size so far, MiB."""
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def resident(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def settle(self) -> None:
        """Until it has used next to nothing for a while: what follows a start is over."""
        quiet = 0
        while quiet < 4:
            before = self.cpu()
            time.sleep(0.5)
            quiet = quiet + 1 if self.cpu() - before <= 0.03 else 0

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def compile_agent(directory: Path) -> None:
    """Have the bytecode of everything that the agent loads made, once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    script = "import calipy.cli.main, calipy.cli.node, calipy.node.agent, calipy.node.bgpd"
    subprocess.run([sys.executable, "-c", script], check=True, env=environment | compiled(directory))


class Twin:
    """The bare tools, in a namespace that holds what the agent has made."""

    def __init__(self) -> None:
        self._fd = netns.create_unnamed()
        self._rules = _output("iptables-nft-save")
        self._by_chain: dict[str, list[str]] = {}
        for text in self._rules.splitlines():
            if text.startswith("-A "):
                self._by_chain.setdefault(text.split()[1], []).append(text)
        self._ip_sets = _output("ipset", "save")

    def fill(self) -> float:
        """Everything, from nothing."""
        taken = self._run(["ipset", "restore"], self._ip_sets)
        return taken + self._run(["iptables-nft-restore"], self._rules)

    def close(self) -> None:
        os.close(self._fd)

    def replace_chain(self, chain: str, number: int) -> float:
        rules = [re.sub(r"--dports \d+", f"--dports {1024 + number}", rule) for rule in self._by_chain[chain]]
        return self._restore([f":{chain} - -", *rules])

    def add_pod(self, pod: int, name: str) -> float:
        """The chains of a pod once more, under another name, and a jump to each where the interface is looked up."""
        lines: list[str] = []
        jumps: list[str] = []
        for prefix, where, option in DISPATCH:
            old, new = prefix + data.interface(pod), f"{prefix}{name}"
            lines.append(f":{new} - -")
            jumps += [rule.replace(old, new) for rule in self._by_chain[old]]
            jumps.append(f"-I {where} {option} {name} -g {new}")
        return self._restore([*lines, *jumps])

    def add_member(self, name: str, number: int) -> float:
        return self._run(["ipset", "restore", "-exist"], f"add {name} 192.0.2.{number % 250}\n")

    def _restore(self, lines: Iterable[str]) -> float:
        return self._run(["iptables-nft-restore", "--noflush"], "\n".join(["*filter", *lines, "COMMIT", ""]))

    def _run(self, argv: list[str], text: str) -> float:
        """Milliseconds."""
        started = time.perf_counter()
        process.run(argv, stdin=text, netns_fd=self._fd, timeout=120).check()
        return (time.perf_counter() - started) * 1000


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
