"""The scenarios of the domain page, told to a running system through Kafka and HTTP.

All are told at the same time, each in a Business Center of its own; where scenarios need a later day, the
system's clock is moved for all of them.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.clocks import offset_to
from tests.acceptance.front_door import FrontDoor
from tests.acceptance.live_platform import LivePlatform, SharedClock
from tests.acceptance.model_platform import START_US
from tests.acceptance.steps import SCENARIOS, Scenario
from tests.servers import running_system

Verdicts = dict[int, BaseException | None]


async def _tell(scenario: Scenario, door: FrontDoor, clock: SharedClock, verdicts: Verdicts) -> None:
    try:
        await scenario.play(LivePlatform(door, clock))
        verdicts[scenario.number] = None
    except Exception as error:
        verdicts[scenario.number] = error
    finally:
        clock.leave()


def _selected(request: pytest.FixtureRequest) -> list[Scenario]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [
        item.callspec.params["scenario"]
        for item in items
        if item.originalname == test_the_platform_agrees_with.__name__
    ]
    return [scenario for scenario in asked if isinstance(scenario, Scenario)]


@pytest.fixture(scope="module")
async def verdicts(request: pytest.FixtureRequest) -> AsyncIterator[Verdicts]:
    """What came of each scenario that was asked for: None, or what was wrong."""
    scenarios = _selected(request)
    found: Verdicts = {}
    async with running_system(clock_offset_seconds=offset_to(START_US)) as system, FrontDoor(system) as door:
        clock = SharedClock(system, len(scenarios))
        async with asyncio.TaskGroup() as group:
            for scenario in scenarios:
                group.create_task(_tell(scenario, door, clock, found))
        yield found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_the_platform_agrees_with(scenario: Scenario, verdicts: Verdicts) -> None:
    error = verdicts[scenario.number]
    if error is not None:
        raise error
