"""The batches of the security check are as harmful as they claim, because otherwise the check would prove nothing."""

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from tests.security.check import BreachError, Check, UnfitError, require, run_all, summary
from tests.security.records import CODECS, Record, batch, bomb, sealed, varint
from tests.security.suite import CHECKS
from tests.security.target import Target

_TEXTS = st.binary(max_size=300)
_HEADERS = st.lists(st.tuples(st.text(max_size=9).map(str.encode), st.none() | _TEXTS), max_size=3)
_RECORDS = st.lists(st.tuples(st.none() | _TEXTS, st.none() | _TEXTS, _HEADERS), min_size=1, max_size=20)


def read(written: bytes) -> list[Record]:
    found = DefaultRecordBatch(written)
    assert found.validate_crc()
    return [(each.key, each.value, [(name.encode(), value) for name, value in each.headers]) for each in found]


@given(_RECORDS, st.sampled_from(sorted(CODECS)))
def test_a_written_batch_is_read_back_unchanged(records: list[Record], codec: str) -> None:
    assert read(batch(records, codec)) == records


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_a_bomb_is_small_and_unpacks_to_all_its_records(codec: str) -> None:
    written = bomb(b"key", codec, 4, 2**20)
    assert len(written) < 2**20 / 4
    assert read(written) == [(b"key", bytes(2**20), [])] * 4


def test_a_sealed_batch_has_the_claimed_length_and_a_valid_crc() -> None:
    assert DefaultRecordBatch(sealed(b"", 2**30, "gzip")).validate_crc()


@pytest.mark.parametrize(
    ("value", "written"), [(0, b"\0"), (-1, b"\1"), (1, b"\2"), (-65, b"\x81\1"), (300, b"\xd8\4")]
)
def test_numbers_are_zigzag_encoded(value: int, written: bytes) -> None:
    assert varint(value) == written


def test_no_two_checks_have_the_same_name() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


async def test_a_failed_check_is_reported_and_an_unfit_system_ends_the_run() -> None:
    async def holds(_: Target) -> str:
        return "refused"

    async def breaks(_: Target) -> str:
        require(held=False, came="let in")
        return ""

    async def errs(_: Target) -> str:
        raise KeyError("x")

    async def stops(_: Target) -> str:
        raise UnfitError("stands")

    checks = [Check("door", run.__name__, "…", run) for run in (holds, breaks, errs, stops, holds)]
    said: list[str] = []
    results = await run_all(checks, Target.of_environment(), said.append)
    assert [(result.held, result.came) for result in results] == [
        (True, "refused"), (False, "let in"), (False, "the check itself ended with KeyError: 'x'"), (False, "stands"),
    ]  # fmt: skip
    assert said[0] == "[1/5] door.holds: …"
    assert "NOT TRIED: the last 1" in summary(results, len(checks))


def test_a_breach_names_the_unexpected_result() -> None:
    with pytest.raises(BreachError, match="200"):
        require(held=False, came=200)
