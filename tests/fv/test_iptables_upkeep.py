"""Rules that others damage, rules that earlier runs left, and a change of the backend: ``iptables_disruption``,
``iptables_cleanup``, ``nft_iptables_cleanup``, ``iptables_backend_switch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.felix import until
from tests.support.fv import Lab, Node
from tests.support.matrix import PATIENCE
from tests.support.objects import global_policy

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]

SHUT = global_policy("shut", selector="all()", types=["Ingress"])
BACKENDS = ("nft", "legacy")


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One node with a pod that is shut, and a machine outside; rules are read anew every two seconds."""
    with Lab(backend=request.param, FELIX_IPTABLESREFRESHINTERVAL="2") as lab:
        lab.external()
        lab.pod("web")
        lab.apply(SHUT, wait=False)
        yield lab.settled()


def everything(node: Node, backend: str | None = None) -> dict[str, list[str]]:
    """All chains and rules, without counters."""
    found = {}
    for program in ("iptables", "ip6tables"):
        for table in ("raw", "mangle", "nat", "filter"):
            saved = node.ns.run(f"{program}-{backend or node.backend}-save", "-t", table).splitlines()
            lines = [line.partition(" [")[0] for line in saved if line.startswith((":", "-A"))]
            found[f"{program} {table}"] = sorted(lines, key=lambda line: not line.startswith(":"))
    return found


def first(node: Node, chain: str) -> str:
    """Number of our rule in a chain of the kernel, as ``iptables -D`` wants it."""
    rules = [rule for rule in node.rules() if rule.startswith(f"-A {chain} ")]
    return str(1 + next(number for number, rule in enumerate(rules) if "cali-" in rule))


DAMAGES: dict[str, Callable[[Lab, Node], object]] = {
    "a hook is deleted": lambda lab, node: lab.iptables(node, "-D", "FORWARD", first(node, "FORWARD")),
    "a hook is no longer the first": lambda lab, node: lab.iptables(node, "-I", "FORWARD", "-j", "ACCEPT"),
    "a chain is flushed": lambda lab, node: lab.iptables(node, "-F", f"cali-tw-{lab.pods[0].interface}"),
    "a rule is added to a chain": lambda lab, node: lab.iptables(node, "-I", "cali-FORWARD", "-j", "ACCEPT"),
    "the table is flushed": lambda lab, node: lab.iptables(node, "-F"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repaired(lab: Lab, damage: str) -> None:
    """The rules are as they were, ours first, and the pod is shut again, soon after."""
    [node], [web], [world] = lab.nodes, lab.pods, lab.externals
    lab.expect({(world, web): "!tcp/80"})
    before = everything(node)
    DAMAGES[damage](lab, node)
    if damage == "a hook is no longer the first":
        until(lambda: first(node, "FORWARD") == "1", timeout=PATIENCE)
        lab.iptables(node, "-D", "FORWARD", "-j", "ACCEPT")
    until(lambda: everything(node) == before, timeout=PATIENCE)
    lab.expect({(world, web): "!tcp/80"})
    assert node.felix()["drift"]


def test_what_an_earlier_run_left_goes_and_what_others_have_stays(lab: Lab) -> None:
    """Chains of ours that nobody wants any more are deleted at the start; foreign ones, kube-proxy's too, are not."""
    [node], [web], [world] = lab.nodes, lab.pods, lab.externals
    clean = everything(node)
    node.agent.stop()
    lab.iptables(node, "-N", "cali-left-behind")
    lab.iptables(node, "-A", "cali-left-behind", "-j", "ACCEPT")
    lab.iptables(node, "-I", "INPUT", "-m", "comment", "--comment", "cali:0123456789abcdef", "-j", "cali-left-behind")
    lab.iptables(node, "-t", "nat", "-N", "KUBE-SERVICES")
    lab.iptables(node, "-t", "nat", "-A", "PREROUTING", "-j", "KUBE-SERVICES")
    lab.iptables(node, "-A", "FORWARD", "-d", "192.0.2.1", "-j", "ACCEPT")
    node.agent.start()
    until(lambda: "cali-left-behind" not in str(everything(node)), timeout=PATIENCE)
    lab.sync()
    assert "-A PREROUTING -j KUBE-SERVICES" in node.rules("nat")
    assert "-A FORWARD -d 192.0.2.1/32 -j ACCEPT" in node.rules()
    lab.expect({(world, web): "!tcp/80"})
    lab.iptables(node, "-t", "nat", "-D", "PREROUTING", "-j", "KUBE-SERVICES")
    lab.iptables(node, "-t", "nat", "-X", "KUBE-SERVICES")
    lab.iptables(node, "-D", "FORWARD", "-d", "192.0.2.1", "-j", "ACCEPT")
    assert everything(node) == clean


def test_the_other_backend_is_swept_after_a_change() -> None:
    """An agent that is told to use the other backend moves there, leaves nothing of ours behind and the pod shut."""
    with Lab(backend="legacy") as lab:
        world = lab.external()
        web = lab.pod("web")
        lab.apply(SHUT, wait=False)
        lab.settled()
        [node] = lab.nodes
        lab.expect({(world, web): "!tcp/80"})
        for backend, other in (("nft", "legacy"), ("legacy", "nft")):
            node.agent.stop()
            node.agent.start(FELIX_IPTABLESBACKEND=backend)
            lab.sync()
            until(lambda other=other: "cali" not in str(everything(node, other)), timeout=PATIENCE)
            assert "cali-FORWARD" in str(everything(node, backend))
            lab.expect({(world, web): "!tcp/80"})
