"""``calipy ipam``: see and change who has which addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import click
from msgspec.structs import replace

from calipy.cli.ipam_mend import capacity, check, release, repair, split
from calipy.cli.ipam_output import Collected, Output, Place, config_option, do, number, output_option
from calipy.cli.options import mismatch_option
from calipy.errors import CalipyError, InvalidInputError
from calipy.ipam import report, snapshot

__all__ = ["Output", "Place", "command", "invoke"]


@click.group()
@mismatch_option(checked=False)
def command() -> None:
    """See and change who has which addresses."""


@command.command()
@click.option("--show-blocks", is_flag=True, help="Also list the blocks of each pool.")
@click.option("--ip", "address", default=None, help="Who has this address?")
@click.option("--show-borrowed", is_flag=True, help="List addresses used by a node that does not own their block.")
@click.option("--show-configuration", is_flag=True, help="Show the settings of address management.")
@output_option
@config_option
def show(show_blocks: bool, address: str | None, show_borrowed: bool, show_configuration: bool, form: str) -> None:
    """Show how full the pools are, or who has an address.

    \b
    Examples:
      calipy ipam show
      calipy ipam show --show-blocks
      calipy ipam show --ip 10.65.0.7
    """
    if address is not None:
        wanted = address
        do(lambda place: _show_address(place, wanted), form)
    elif show_borrowed:
        do(_show_borrowed, form)
    elif show_configuration:
        do(_show_configuration, form)
    else:
        do(lambda place: _show_usage(place, blocks=show_blocks), form)


async def _show_usage(place: Place, *, blocks: bool) -> Output:
    usage = report.usage(await snapshot.read(place.store))
    pools = [*usage.pools, *([usage.orphaned] if usage.orphaned.blocks else [])]
    rows: list[tuple[str, ...]] = []
    for pool in pools:
        rows.append(_usage_row("IP Pool" if pool.cidr else "Orphaned", pool.cidr, pool))
        if blocks:
            rows += [_usage_row("Block", block.cidr, block) for block in pool.blocks]
    document = [
        {
            "name": pool.name,
            "cidr": pool.cidr,
            **_figures(pool),
            **(
                {"blocks": [{"cidr": b.cidr, "affinity": b.owner, **_figures(b)} for b in pool.blocks]}
                if blocks
                else {}
            ),
        }
        for pool in pools
    ]
    columns = ("GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE")
    return Output(columns=columns, rows=tuple(rows), document=document)


def _figures(entry: report.PoolUsage | report.BlockUsage) -> dict[str, int]:
    return {"total": entry.total, "inUse": entry.in_use, "reserved": entry.reserved, "free": entry.available}


def _usage_row(grouping: str, cidr: str, entry: report.PoolUsage | report.BlockUsage) -> tuple[str, ...]:
    def share(count: int) -> str:
        return f"{number(count)} ({100 * count / entry.total if entry.total else 0:.0f}%)"

    return (grouping, cidr, number(entry.total), share(entry.in_use), share(entry.reserved), share(entry.available))


async def _show_address(place: Place, text: str) -> Output:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInputError("is not an IP address", field="--ip", value=text) from None
    found = report.holder(await snapshot.read(place.store), str(address))
    if found is None:
        return Output(text=f"{address} is not assigned to anybody", document={"ip": str(address), "inUse": False})
    block, attribute = found
    lines = [
        f"{address} is in use",
        f"  block: {block.cidr}, which belongs to {block.affinity or 'nobody'}",
        f"  handle: {attribute.handle_id or 'none'}",
        *(f"  {name}: {value}" for name, value in attribute.attributes.items()),
    ]
    document = {
        "ip": str(address),
        "inUse": True,
        "block": block.cidr,
        "affinity": block.affinity,
        "handle": attribute.handle_id,
        "attributes": dict(attribute.attributes),
    }
    return Output(text="\n".join(lines), document=document)


async def _show_borrowed(place: Place) -> Output:
    found = list(report.borrowed(await snapshot.read(place.store)))
    return Output(
        columns=("IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"),
        rows=tuple((b.address, b.node, b.block, b.owner, b.kind, b.user) for b in found),
        document=[
            {"ip": b.address, "node": b.node, "block": b.block, "owner": b.owner, "type": b.kind, "allocatedTo": b.user}
            for b in found
        ],
    )


async def _show_configuration(place: Place) -> Output:
    stored = (await snapshot.read(place.store, ())).config
    config = stored or place.defaults
    properties = {
        "StrictAffinity": config.strict_affinity,
        "AutoAllocateBlocks": config.auto_allocate_blocks,
        "MaxBlocksPerHost": config.max_blocks_per_host,
        "KubeVirtVMAddressPersistence": config.kubevirt_vm_address_persistence or "",
        "IPCooldownSeconds": config.cooldown_seconds,
    }
    rows = tuple(
        (name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in properties.items()
    )
    note = "" if stored else "Nothing is stored; these are calipy's defaults. Calico borrows unless told otherwise."
    return Output(text=note, columns=("PROPERTY", "VALUE"), rows=rows, document=properties)


@command.command()
@click.option(
    "--strictaffinity", type=click.BOOL, default=None, help="true: never take an address from another node's block."
)
@click.option(
    "--max-blocks-per-host",
    type=int,
    default=None,
    help="0 means 20; per family; up to 1000000. Needs strict affinity.",
)
@click.option(
    "--ip-cooldown-seconds", type=int, default=None, help="How long a released address stays unused; up to 1200."
)
@click.option(
    "--kubevirt-ip-persistence",
    type=click.Choice(["Enabled", "Disabled"]),
    default=None,
    help="For KubeVirt's machines.",
)
@config_option
def configure(
    strictaffinity: bool | None,
    max_blocks_per_host: int | None,
    ip_cooldown_seconds: int | None,
    kubevirt_ip_persistence: str | None,
) -> None:
    """Change the settings of address management, for all nodes and for Calico as well.

    Without stored settings calipy does not borrow addresses from other nodes' blocks, Calico does; the first
    configure makes that explicit.

    \b
    Examples:
      calipy ipam configure --strictaffinity=true --max-blocks-per-host=4
    """
    do(
        lambda place: _configure(
            place, strictaffinity, max_blocks_per_host, ip_cooldown_seconds, kubevirt_ip_persistence
        )
    )


async def _configure(
    place: Place, strict: bool | None, max_blocks: int | None, cooldown: int | None, persistence: str | None
) -> Output:
    if strict is None and max_blocks is None and cooldown is None and persistence is None:
        return Output(text="nothing to configure: give at least one setting (--help lists them)", exit_code=1)
    allocator = place.allocator()
    config = await allocator.config()
    changed = replace(
        config,
        strict_affinity=config.strict_affinity if strict is None else strict,
        max_blocks_per_host=config.max_blocks_per_host if max_blocks is None else max_blocks,
        cooldown_seconds=config.cooldown_seconds if cooldown is None else cooldown,
        kubevirt_vm_address_persistence=persistence or config.kubevirt_vm_address_persistence or "Enabled",
    )
    await allocator.set_config(changed)
    # Calico stores what is out of range, and so others may find it there: it is stored, but not without a word.
    meant = (("--max-blocks-per-host", max_blocks, 1_000_000), ("--ip-cooldown-seconds", cooldown, 1200))
    odd = [f"{name}={value} is outside 0 to {most}" for name, value, most in meant if not 0 <= (value or 0) <= most]
    return Output(text="; ".join(["configured", *odd]))


for other in (check, release, capacity, repair, split):
    command.add_command(other)


async def invoke(place: Place, arguments: Sequence[str]) -> Output:
    """Run one command line, e.g. ``["show", "--show-blocks"]``, on a given store."""
    collected = Collected()
    try:
        command.main(list(arguments), standalone_mode=False, obj=collected)
        outputs = [await action(place) for action in collected.actions]
    except CalipyError as error:
        return Output(text=str(error), exit_code=1)
    except click.ClickException as error:
        return Output(text=error.format_message(), exit_code=1)
    return outputs[-1] if outputs else Output()
