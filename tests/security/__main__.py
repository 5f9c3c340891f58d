"""Attacks the system that `make up` has started in this folder, and reports the result."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import httpx

from tests.security.check import Check, run_all, summary
from tests.security.suite import CHECKS
from tests.security.target import NoTargetError, Target

_INTRODUCTION = """\
Attacks the system of `make up` in project {project}: the API at port {http}, Kafka at port {kafka}.
It opens Business Centers whose ids begin with {prefix} and leaves them there, with what they spent and what is in
quarantine of theirs. What its SQL changes is undone. Nothing of others is changed; a check that fails may stop the
system for all, so rehearse it before it matters. {checks} checks{minutes}."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the selected checks; return 0 if all held, 1 if one did not, and 2 if there is no system to attack."""
    asked = _parser().parse_args(arguments)
    checks = [check for check in CHECKS if _is_wanted(check, asked.only) and (check.is_quick or not asked.quick)]
    if asked.list:
        for check in checks:
            say(f"{check.name:32} {check.tries}")
        return 0
    if not checks:
        say(f"no check is called {asked.only}: --list shows them")
        return 2
    try:
        return asyncio.run(_attack(checks, quick=asked.quick))
    except (NoTargetError, httpx.HTTPError) as error:
        say(f"there is nothing to attack: {error}")
        return 2


async def _attack(checks: Sequence[Check], *, quick: bool) -> int:
    target = Target.of_environment()
    await _require_a_target(target)
    minutes = "" if quick else ", some minutes"
    say(
        _INTRODUCTION.format(
            project=target.project,
            http=target.http_port,
            kafka=target.kafka_port,
            prefix=target.prefix,
            checks=len(checks),
            minutes=minutes,
        )
    )
    try:
        results = await run_all(checks, target, say)
    finally:
        await target.close()
    say(summary(results, len(checks)))
    say(f"left behind: what begins with {target.prefix}")
    return 0 if len(results) == len(checks) and all(result.held for result in results) else 1


async def _require_a_target(target: Target) -> None:
    """Raise NoTargetError if nothing runs, or if security is off."""
    await target.inspect("allocation")
    answer = await target.ask("GET", "/v1/business-centers")
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        raise NoTargetError(f"the API answers {answer.status_code} without a token: run `make up` without SECURITY=off")
    (counted,) = await target.rows("SELECT count(*) FROM ledger.shards")
    target.shards = int(counted[0])


def _is_wanted(check: Check, only: Sequence[str]) -> bool:
    return not only or any(check.name == name or check.door == name for name in only)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make security-check", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the checks, and run none")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a check or a door; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="leave out checks that take long or leave much behind")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
