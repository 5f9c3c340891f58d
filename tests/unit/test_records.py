"""Reading Kafka's batches: names of headers may have any bytes, whatever packs the batch."""

from contextlib import suppress
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation import kafka, records
from services.allocation.records import FetchedRecords
from tests.any_headers import Headers, batch_of

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
LATIN = b"kampagne-gr\xfcn"


def read(data: bytes) -> list[Any]:
    fetched, found = FetchedRecords(data), []
    while fetched.has_next():
        batch = fetched.next_batch()
        assert batch.validate_crc()
        found += list(batch)
    return found


def headers_of(data: bytes) -> list[list[tuple[str, bytes | None]]]:
    return [list(record.headers) for record in read(data)]


@pytest.fixture(params=[MemoryRecords, _MemoryRecordsPy], ids=["compiled", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MemoryRecords", request.param)


def test_the_compiled_parser_is_there_and_takes_utf_8_alone() -> None:
    assert MemoryRecords is not _MemoryRecordsPy
    batch = MemoryRecords(batch_of([[(LATIN, b"1")]])).next_batch()
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        list(batch)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("is_transactional", [0, 1])
def test_a_name_that_is_not_utf_8_is_shown_and_stops_nothing(codec: int, is_transactional: int) -> None:
    plain: Headers = [(b"trace", b"1")]
    batches = [plain] * 20 + [[(LATIN, None), (b"\xff\xfe", b""), (b"ce_id", b"\xff")]] + [[]] + [plain] * 20
    data = batch_of(batches, codec, is_transactional=is_transactional) + batch_of([plain], codec, offset=42)
    shown = [("kampagne-gr\\xfcn", None), ("\\xff\\xfe", b""), ("ce_id", b"\xff")]
    expected = [[("trace", b"1")]] * 20 + [shown] + [[]] + [[("trace", b"1")]] * 20 + [[("trace", b"1")]]
    assert headers_of(data) == expected
    assert [record.offset for record in read(data)] == list(range(43))
    assert {(record.key, record.value, record.timestamp) for record in read(data)} == {
        (b"key", b"value", 1_700_000_000_000)
    }


@pytest.mark.parametrize("bad", [0, 499, 500, 501, 1100])
def test_every_record_is_read_once_wherever_the_name_stands(bad: int) -> None:
    data = batch_of([[(LATIN, b"1")] if number == bad else [] for number in range(1101)])
    assert [record.offset for record in read(data)] == list(range(1101))


def test_a_control_batch_tells_what_it_is() -> None:
    (batch,) = [FetchedRecords(batch_of([[]], is_transactional=1, is_control=True)).next_batch()]
    assert batch.is_control_batch
    assert batch.is_transactional
    assert (batch.producer_id, batch.base_offset, batch.next_offset) == (7, 0, 1)
    assert next(batch).key == b"key"


def test_a_batch_of_the_old_format_is_read() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, timestamp=5, key=b"key", value=b"value", headers=[])
    assert [(record.value, record.headers) for record in read(bytes(builder.build()))] == [(b"value", [])]


@given(st.lists(st.lists(st.tuples(st.binary(max_size=6), st.none() | st.binary(max_size=3)), max_size=3), max_size=5))
@settings(max_examples=300)
def test_any_headers_are_read(headers: list[Headers]) -> None:
    expected = [[(name.decode(errors="backslashreplace"), value) for name, value in each] for each in headers]
    assert headers_of(batch_of(headers or [[]])) == (expected or [[]])


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_corrupt_record_is_told_as_what_it_is(place: int, change: int) -> None:
    data = bytearray(batch_of([[(LATIN, b"1")], [(b"trace", b"2")]]))
    data[61 + place % (len(data) - 61)] ^= change
    with suppress(CorruptRecordException):
        list(FetchedRecords(bytes(data)).next_batch())


def test_a_record_that_is_longer_than_its_fields_is_corrupt() -> None:
    data = bytearray(batch_of([[(LATIN, b"1")]]))
    data[61] += 2  # its length is the first thing behind the batch's head, as a zigzag number
    with pytest.raises(CorruptRecordException, match="a record of"):
        list(FetchedRecords(bytes(data)).next_batch())


def test_the_time_is_the_brokers_where_it_says_so() -> None:
    data = bytearray(batch_of([[(LATIN, b"1")]]))
    data[22] |= 0x08  # the attribute of LogAppendTime
    data[35:43] = (1_800_000_000_000).to_bytes(8, "big")  # the largest timestamp
    assert [record.timestamp for record in FetchedRecords(bytes(data)).next_batch()] == [1_800_000_000_000]


def test_a_record_without_foreign_bytes_comes_from_the_compiled_parser() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
    builder.append(0, timestamp=5, key=b"key", value=b"value", headers=[])
    (record,) = read(bytes(builder.build()))
    assert type(record).__module__.endswith("_crecords.default_records")


def test_it_is_installed_where_aiokafka_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = [fetcher.MemoryRecords, fetcher.PartitionRecords]
    for name in ("MemoryRecords", "PartitionRecords"):
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))  # raises where aiokafka has none; undone behind us
    assert all(isinstance(each, type) for each in original)
    kafka.install()
    assert fetcher.MemoryRecords is FetchedRecords
    assert fetcher.PartitionRecords is kafka._ParsedRecords
    used = fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert {"MemoryRecords", "PartitionRecords"} <= set(used)
