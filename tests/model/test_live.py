"""A running system and the model do the same work. Afterwards every figure that can be read is the same."""

import pytest

from tests.acceptance.clocks import move_clock, offset_to
from tests.acceptance.front_door import FrontDoor
from tests.model.driver import Driver
from tests.model.model import DAY_US
from tests.model.test_model import START_US
from tests.model.workload import Workload
from tests.servers import running_system

WORK_A_DAY = 180
# Noon in London, evening in Tokyo and Kathmandu, morning in New York: no day turns during the work.
DAYS = 3


# A seed takes most of a minute, so each kind of servers gets one.
@pytest.mark.parametrize(
    "seed", [pytest.param(4, marks=pytest.mark.embedded), pytest.param(6, marks=pytest.mark.containers)]
)
async def test_the_system_agrees_with_the_model(seed: int) -> None:
    async with running_system(clock_offset_seconds=offset_to(START_US)) as system, FrontDoor(system) as door:
        workload, driver = Workload(seed, prefix=f"m{seed}-"), Driver(door)
        for work in workload.opening(door.now_us()):
            await driver.do(work)
        for day in range(DAYS):
            if day:
                await move_clock(system, START_US + day * DAY_US)
            for _ in range(WORK_A_DAY):
                await driver.do(workload.next(door.now_us()))
            await driver.compare(workload.centers, workload.account_ids)
