"""The scenarios of the domain page, run on a system through Kafka and HTTP."""

from collections.abc import AsyncIterator

import pytest
from pytest_bdd import scenarios

from tests.acceptance.clocks import offset_to
from tests.acceptance.front_door import FrontDoor
from tests.acceptance.live_platform import LivePlatform
from tests.acceptance.model_platform import START_US
from tests.servers import running_system


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[LivePlatform]:
    """Yield a running system for all scenarios, each of which has a Business Center of its own."""
    async with running_system(clock_offset_seconds=offset_to(START_US)) as system, FrontDoor(system) as door:
        yield LivePlatform(door)


scenarios("scenarios")
