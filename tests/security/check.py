"""Checks, and how they are run: one after the other, with a line for each."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.security.target import Target


class BreachError(Exception):
    """An attack succeeded or did harm. The text says what happened instead of a refusal."""


class UnfitError(Exception):
    """The system has stopped working after an attack, so that further attacks would prove nothing."""


@dataclass(frozen=True)
class Check:
    """One attack.

    `tries` describes the attack. `run` returns its result, and raises BreachError if the system did not resist.
    `is_quick` means that it takes a few seconds at most and leaves little behind.
    """

    door: str
    title: str
    tries: str
    run: Callable[[Target], Awaitable[str]]
    is_quick: bool = True

    @property
    def name(self) -> str:
        """The door and the title, as `--only` takes them."""
        return f"{self.door}.{self.title}"


@dataclass(frozen=True)
class Result:
    """The result of a check."""

    check: Check
    held: bool
    came: str
    milliseconds: int


def require(held: bool, came: object) -> None:
    """Raise BreachError with this text unless the condition holds."""
    if not held:
        raise BreachError(str(came))


async def run_all(checks: Sequence[Check], target: Target, say: Callable[[str], None]) -> list[Result]:
    """Run the checks in order, and report each result. Stops after a check that leaves the system unfit."""
    results: list[Result] = []
    for number, check in enumerate(checks, 1):
        say(f"[{number}/{len(checks)}] {check.name}: {check.tries}")
        if results and results[-1].check.door != check.door:
            await target.close()  # Processes left in a container would use its memory.
        result, goes_on = await _run(check, target)
        results.append(result)
        say(f"    {'held' if result.held else 'FAILED'}, {result.milliseconds} ms: {result.came}")
        if not goes_on:
            break
    return results


async def _run(check: Check, target: Target) -> tuple[Result, bool]:
    began = time.monotonic()

    def result(came: str, *, held: bool) -> Result:
        return Result(check, held, came, round(1000 * (time.monotonic() - began)))

    try:
        return result(await check.run(target), held=True), True
    except BreachError as breach:
        return result(str(breach), held=False), True
    except UnfitError as unfit:
        return result(str(unfit), held=False), False
    except Exception as error:
        return result(f"the check itself ended with {type(error).__name__}: {error}", held=False), True


def summary(results: Sequence[Result], of: int) -> str:
    """Return the summary of all results."""
    failed = [result.check.name for result in results if not result.held]
    seconds = sum(result.milliseconds for result in results) / 1000
    lines = [f"{len(results) - len(failed)} of {of} checks held, in {seconds:.0f} s"]
    lines += [f"FAILED: {name}" for name in failed]
    if len(results) < of:
        lines.append(f"NOT TRIED: the last {of - len(results)}, because the system did not go on")
    return "\n".join(lines)
