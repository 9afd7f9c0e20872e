"""The iptables edge against the kernel: transactions, read-back, refusals, backends, other people's writes."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.dataplane import backend as backends
from calipy.felix.dataplane.iptables import IPTables
from calipy.felix.dataplane.nftables import NftablesReader
from calipy.felix.messages import Changes, EndpointID, WorkloadEndpoint
from calipy.felix.render.renderer import Renderer
from calipy.felix.render.rule import Chain, Rule
from calipy.kernel import process
from calipy.net import Family
from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel]

BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])
FAMILIES: tuple[Family, Family] = (4, 6)
Backend = Literal["nft", "legacy"]


def inside(netns: Namespace, scenario: Callable[[], Any]) -> Any:
    """Run a coroutine function in the namespace; the threads that its loop starts are there as well."""

    return netns.call(lambda: asyncio.run(scenario()))


def run(*argv: str, stdin: str = "") -> str:
    """Standard output of a program that succeeds, in the namespace of the calling thread."""
    return process.run(argv, stdin=stdin).check().stdout


def made(config: FelixConfig | None = None) -> dict[Family, Renderer]:
    return {family: Renderer(family, config or FelixConfig()) for family in FAMILIES}


def edge(backend: Backend, renderers: dict[Family, Renderer]) -> IPTables:
    return IPTables(backend, {family: renderer.tables for family, renderer in renderers.items()})


def endpoint(number: int) -> WorkloadEndpoint:
    identity = EndpointID("k8s", f"ns1/p{number}", "eth0")
    return WorkloadEndpoint(identity, f"cali{number:04x}", "", (f"10.0.0.{number}/32",), (), ())


def add_endpoints(renderers: dict[Family, Renderer], *numbers: int) -> None:
    items = {(item := endpoint(number)).id: item for number in numbers}
    for renderer in renderers.values():
        renderer.update(Changes(endpoints=dict(items)))


@BACKENDS
def test_write_is_complete_and_the_second_is_empty(netns: Namespace, backend: Backend) -> None:
    """Everything desired is in the kernel afterwards, by its hashes; nothing is left to do or written again."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge(backend, renderers)
        add_endpoints(renderers, *range(40))
        assert (await iptables.write()).changed
        assert not (await iptables.write()).changed
        assert await iptables.read() == []
        assert not (await iptables.write()).changed
        add_endpoints(renderers, 77)
        report = await iptables.write()
        assert 0 < len(report.changed) < 12
        assert await iptables.read() == []
        iptables.close()

    inside(netns, scenario)


def test_one_change_is_one_transaction_and_reads_back_only_itself(netns: Namespace) -> None:
    """A changed chain costs one transaction of one table; no save of the whole is started."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge("nft", renderers)
        add_endpoints(renderers, *range(40))
        await iptables.write()
        await iptables.read()
        with NftablesReader() as reader:
            before = reader.generation()
            programs: list[str] = []
            original = process.run

            def recording(argv: list[str], **options: Any) -> Any:
                programs.append(argv[0])
                return original(argv, **options)

            process.run = recording  # type: ignore[assignment]
            try:
                table = renderers[4].tables["filter"]
                table.put(Chain("cali-tw-cali0001", (Rule("", "--jump DROP", ("changed",)),)))
                await iptables.write()
            finally:
                process.run = original
            assert programs == ["iptables-nft-restore"]
            assert reader.generation() == before + 1
            assert reader.rule_hashes(4, "filter", "cali-tw-cali0001") == table.content("cali-tw-cali0001").hashes
            assert not iptables.unverified
            assert not iptables.others_wrote()
        iptables.close()

    inside(netns, scenario)


def test_somebody_elses_transaction_is_noticed(netns: Namespace) -> None:
    """The generation says so, whether it came before, after or between our own writes."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge("nft", renderers)
        await iptables.write()
        assert not iptables.others_wrote()
        run("nft", "add", "table", "inet", "theirs")
        assert iptables.others_wrote()
        add_endpoints(renderers, 1)
        await iptables.write()
        assert iptables.others_wrote()
        assert await iptables.read() == []
        assert not iptables.others_wrote()
        iptables.close()

    inside(netns, scenario)


@BACKENDS
def test_reading_beside_writing_confuses_nothing(netns: Namespace, backend: Backend) -> None:
    """What we write while everything is being read is not taken for drift; what others wrote is."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge(backend, renderers)
        add_endpoints(renderers, 1, 2)
        await iptables.write()
        run(f"iptables-{backend}", "-F", "cali-fw-cali0002")
        reading = await iptables.begin_reading()
        for renderer in renderers.values():
            renderer.update(Changes(endpoints={endpoint(1).id: None}))
        add_endpoints(renderers, 3)
        await iptables.write()
        drift = iptables.adopt(reading)
        assert [item.name for item in drift] == ["cali-fw-cali0002"]
        assert len((await iptables.write()).changed) == 1
        assert not iptables.others_wrote()
        assert await iptables.read() == []
        iptables.close()

    inside(netns, scenario)


@BACKENDS
def test_a_rule_that_cannot_be_is_isolated(netns: Namespace, backend: Backend) -> None:
    """The chain with the bad rule drops; all other changes of the same write are in the kernel."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge(backend, renderers)
        add_endpoints(renderers, 1, 2, 3)
        table = renderers[4].tables["filter"]
        table.put(Chain("cali-tw-cali0002", (Rule("-m set --match-set nowhere src", "--jump ACCEPT"),)))
        table.put(Chain("cali-fw-cali0003", (Rule("-m multiport --source-ports 1", "--jump ACCEPT"),)))
        report = await iptables.write()
        assert set(report.refused) == {"ipv4 filter cali-tw-cali0002", "ipv4 filter cali-fw-cali0003"}
        assert "nowhere" in report.refused["ipv4 filter cali-tw-cali0002"]
        await iptables.read()
        assert not (await iptables.write()).changed
        saved = run(f"iptables-{backend}-save")
        assert saved.count("Refused by the kernel") == 2
        assert "cali-tw-cali0001" in saved
        table.put(Chain("cali-tw-cali0002", (Rule("", "--jump RETURN"),)))
        assert set((await iptables.write()).refused) == {"ipv4 filter cali-fw-cali0003"}
        iptables.close()

    inside(netns, scenario)


@BACKENDS
@pytest.mark.parametrize("reached_before", [False, True])
def test_a_rule_that_only_the_kernel_refuses_is_isolated(
    netns: Namespace, backend: Backend, *, reached_before: bool
) -> None:
    """The legacy tools do not say which rule it is: it is found, and everything else is written, at the first write
    as well as later.
    """

    async def scenario() -> None:
        renderers = made()
        iptables = edge(backend, renderers)
        if reached_before:
            add_endpoints(renderers, *range(1, 6))
            assert not (await iptables.write()).refused
        add_endpoints(renderers, *range(1, 9))
        table = renderers[4].tables["filter"]
        # A reverse path is known in PREROUTING only, which the programs do not mind; nor a REJECT outside of filter.
        bad = Chain("cali-po-bad", (Rule("-m rpfilter --invert", "--jump DROP"),))
        for chain in ("cali-fw-cali0002", "cali-fw-cali0007"):
            table.put(Chain(chain, (Rule("", "--jump cali-po-bad"), Rule("", "--jump cali-po-good"))))
        table.put(bad)
        table.put(Chain("cali-po-good", (Rule("-p tcp", "--jump RETURN"),)))
        renderers[4].tables["mangle"].put(Chain("cali-PREROUTING", (Rule("", "--jump REJECT"),)))
        report = await iptables.write()
        assert set(report.refused) == {"ipv4 filter cali-po-bad", "ipv4 mangle cali-PREROUTING"}
        assert await iptables.read() == []
        assert not (await iptables.write()).changed
        saved = run(f"iptables-{backend}-save")
        assert saved.count("Refused by the kernel") == 2
        assert "Not written yet" not in saved
        assert all(f":cali-tw-cali{number:04x}" in saved for number in range(1, 9))
        assert any("cali-po-good" in line and "-p tcp" in line for line in saved.splitlines())
        table.put(Chain("cali-po-bad", (Rule("", "--jump RETURN"),)))
        assert set((await iptables.write()).refused) == {"ipv4 mangle cali-PREROUTING"}
        iptables.close()

    inside(netns, scenario)


def test_a_chain_deleted_by_others_meanwhile_is_made_again(netns: Namespace) -> None:
    """A restore that fails because the kernel is not what we remember is tried again after reading."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge("nft", renderers)
        add_endpoints(renderers, 1, 2)
        await iptables.write()
        run("nft", "flush", "ruleset")
        table = renderers[4].tables["filter"]
        table.put(Chain("cali-FORWARD", (Rule("", "--jump cali-to-wl-dispatch"),)))
        await iptables.write()
        await iptables.read()
        await iptables.write()
        assert await iptables.read() == []
        iptables.close()

    inside(netns, scenario)


def test_tables_that_iptables_cannot_show_are_an_error(netns: Namespace) -> None:
    """A native rule that iptables-save mentions in a comment only, with status 0, must not look like an empty table."""

    async def scenario() -> None:
        iptables = edge("nft", made())
        await iptables.write()
        run("nft", "add", "rule", "ip", "filter", "FORWARD", "numgen", "random", "mod", "3", "vmap", "{ 0: accept }")
        with pytest.raises(KernelError, match="incompatible"):
            await iptables.read()
        iptables.close()

    inside(netns, scenario)


def test_the_legacy_lock_is_waited_for(netns: Namespace) -> None:
    """While somebody holds the xtables lock nothing is half-applied, and the write succeeds when it is free."""

    async def scenario() -> None:
        renderers = made()
        iptables = edge("legacy", renderers)
        await iptables.write()
        add_endpoints(renderers, 1)
        with Path("/run/xtables.lock").open("w", encoding="ascii") as lock:  # noqa: ASYNC230 - of no consequence here
            fcntl.flock(lock, fcntl.LOCK_EX)
            writing = asyncio.create_task(iptables.write())
            done, _ = await asyncio.wait({writing}, timeout=0.5)
            assert not done
            fcntl.flock(lock, fcntl.LOCK_UN)
        await writing
        assert await iptables.read() == []
        iptables.close()

    inside(netns, scenario)


def test_backend_is_chosen_by_evidence(netns: Namespace) -> None:
    """Configured, kubelet's marks, other rules, our own chains, the host's default; rules in both are refused."""

    async def choose(configured: Any = "auto") -> str:
        return await backends.choose(configured, FAMILIES)

    async def scenario() -> None:
        default = "legacy" if "legacy" in run("iptables", "-V") else "nft"
        assert await choose() == default
        run("iptables-legacy", "-N", "cali-old")
        assert await choose() == "legacy"
        assert await choose("nft") == "nft"
        run("iptables-nft", "-A", "FORWARD", "-j", "ACCEPT")
        assert await choose() == "nft"
        run("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
        with pytest.raises(KernelError, match="both backends") as refused:
            await choose()
        assert "IptablesBackend" in refused.value.remedy
        run("iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
        assert await choose() == "legacy"

    inside(netns, scenario)


@BACKENDS
def test_append_mode_puts_our_jumps_behind_others(netns: Namespace, backend: Backend) -> None:
    """ChainInsertMode can change while rules are in place."""

    async def scenario() -> None:
        run(f"iptables-{backend}", "-A", "FORWARD", "-d", "192.0.2.1", "-j", "ACCEPT")
        iptables = edge(backend, made())
        await iptables.write()
        appending = made(FelixConfig(chain_insert_mode="append"))
        iptables.set_tables({family: renderer.tables for family, renderer in appending.items()})
        await iptables.write()
        listed = run(f"iptables-{backend}", "-S", "FORWARD")
        rules = [line for line in listed.splitlines() if line.startswith("-A")]
        assert "192.0.2.1" in rules[0]
        assert "cali-FORWARD" in rules[1]
        assert len(rules) == 4
        iptables.close()

    inside(netns, scenario)
