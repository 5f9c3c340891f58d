"""Sends a workload through the front door, for tests that do not look at the outcome of each piece."""

from tests.acceptance.front_door import FrontDoor
from tests.model.workload import Work, Workload


async def do(door: FrontDoor, work: Work) -> None:
    """Send the command, or publish the event."""
    await (door.command(work.message) if work.kind == "command" else door.publish(work.message))


async def open_and_work(door: FrontDoor, workload: Workload, pieces: int) -> None:
    """Open the workload's Business Centers, then do this many pieces of work."""
    for work in workload.opening(door.now_us()):
        await do(door, work)
    for _ in range(pieces):
        await do(door, workload.next(door.now_us()))
