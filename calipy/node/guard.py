"""The first thing that an agent does, before most of it is imported.

Routes to pods may stand in a kernel whose rules are gone. Until policy is known again no packet may pass there, and
each millisecond counts: this module imports what renders and writes rules, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from calipy import log
from calipy.errors import KernelError
from calipy.felix.config import FelixConfig
from calipy.felix.messages import Changes
from calipy.felix.ruleset import Ruleset, in_force

logger = log.get("agent")


async def guard(parameters: Mapping[str, str]) -> None:
    """Have workload interfaces drop, unless our rules are in force: then this costs one look over netlink.

    The agent does the same more thoroughly as soon as it has started; it also reports what fails here.

    Args:
        parameters: of Felix, as far as the environment gives them.
    """
    config = FelixConfig.from_parameters(parameters)
    rules = Ruleset()
    try:
        if not in_force(config):
            await rules.build(config, Changes(), {})
            await rules.guard()
    except KernelError as error:
        logger.debug("cannot guard the workload interfaces yet", reason=str(error))
    finally:
        rules.close()
