"""Readers of our own records take those from any topic in bounded memory, whatever else somebody has written to it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation.records import consuming
from shared.runtime import fetched
from tests.raw_batches import GZIP, PACK, batch, bombs, message, mines, record, records
from tests.servers import memory_of
from tests.unit.test_any_batch import Assignment

PLACE = TopicPartition("delivery.signals", 1)
OURS = [b'{"position":1}', b'{"position":2}', b'{"position":3}']
INSTALLED: dict[str, tuple[Callable[[], None], ...]] = {
    "alone": (fetched.install,),
    "behind allocation": (consuming.install, fetched.install),
    "before allocation": (fetched.install, consuming.install),
}


def of_aiokafka(name: str) -> Any:
    """Return the class of this name, from below ours if another test of the process has installed them."""
    return next(kind for kind in getattr(fetcher, name).__mro__ if kind.__module__ == fetcher.__name__)


ORIGINAL = {"MemoryRecords": MemoryRecords, **{n: of_aiokafka(n) for n in ("PartitionRecords", "FetchResult")}}


@pytest.fixture(autouse=True, params=INSTALLED)
def installed(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, kind in ORIGINAL.items():
            monkeypatch.setattr(fetcher, name, kind)
        for install in INSTALLED[request.param]:
            install()
        yield


def read(data: bytes, offset: int = 0, most: int = 2) -> tuple[list[bytes | None], int]:
    """Return the values that a plain consumer takes, a few at a time, and the offset where it goes on."""
    found = fetcher.MemoryRecords(data)
    parsed = fetcher.PartitionRecords(PLACE, found, None, offset, None, None, True, fetcher.READ_UNCOMMITTED)
    assignment = Assignment(offset)
    result = fetcher.FetchResult(PLACE, partition_records=parsed, assignment=assignment, backoff=0)
    values: list[bytes | None] = []
    while result.has_more():
        values += [each.value for each in result.getall(most)]
    return values, assignment.position


def around(hostile: bytes, offsets: int) -> bytes:
    """Return a batch of ours, another one, and ours again."""
    return batch(records(OURS), 3) + hostile + batch(records(OURS), 3, offset=3 + offsets)


@pytest.mark.parametrize("codec", ["none", *PACK])
def test_batches_of_our_producers_are_read_with_every_codec(codec: str) -> None:
    number, pack = PACK.get(codec, (0, bytes))
    assert read(batch(pack(records(OURS)), 3, codec=number, offset=7), 7) == (OURS, 10)


@pytest.mark.parametrize("name", [*bombs(2), *mines()])
def test_a_batch_that_unpacks_beyond_the_bound_or_to_nothing_is_skipped(name: str) -> None:
    codec, packed = {**bombs(2), **mines()}[name]
    assert read(around(batch(packed, 900, codec=codec, offset=3), 900)) == (OURS * 2, 906)


ODD_NAME = record(b"odd", headers=[(b"n\xffme", b"x")])
UNREADABLE = {
    "a name that is not UTF-8": (batch(ODD_NAME, 1, offset=3), 1),
    "another codec than declared": (batch(b"\xff" * 90, 4, codec=GZIP, offset=3), 4),
    "an unknown codec": (batch(b"x", 1, codec=6, offset=3), 1),
    "fewer records than declared": (batch(b"", 2, offset=3), 2),
    "a record longer than the batch": (batch(b"\xfe\xff\xff\xff\x0f", 1, offset=3), 1),
    "a message of an old format": (message(b"old", offset=3), 1),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_batch_is_skipped_without_losing_a_record_of_ours(what: str) -> None:
    hostile, offsets = UNREADABLE[what]
    for most in (1, 2, 100):
        assert read(around(hostile, offsets), most=most) == (OURS * 2, 6 + offsets)


def test_the_records_before_an_unreadable_one_of_the_same_batch_are_taken() -> None:
    hostile = batch(record(b"first") + record(b"odd", headers=[(b"n\xffme", b"x")], offset=1), 2, offset=3)
    assert read(around(hostile, 2)) == ([*OURS, b"first", *OURS], 8)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 7), st.integers(0, 2**31 - 1))
def test_reading_continues_after_a_batch_of_any_content(inside: bytes, codec: int, count: int) -> None:
    hostile = batch(inside, count, codec=codec, offset=3, last=5)
    values, position = read(around(hostile, 6))
    assert (values[:3], values[-3:], position) == (OURS, OURS, 12)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_either_read_or_a_corrupt_batch(data: bytes) -> None:
    with contextlib.suppress(CorruptRecordException):
        read(data)


def test_bombs_of_every_codec_take_no_more_memory_than_the_bound() -> None:
    """They are read one after the other, in a process of its own."""
    before, after = memory_of(
        """
        import structlog
        from tests.raw_batches import batch, bombs
        from tests.unit import test_fetched
        from shared.runtime import fetched
        made = [batch(held, 9, codec=codec) for codec, held in bombs(200).values()]
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
        fetched.install()
        test_fetched.read(made[0])
        measure()
        for each in made:
            assert test_fetched.read(each) == ([], 9)
        measure()
        """
    )
    assert after - before < 8 * 2**20
