"""Reading Kafka's batches: the names of headers may have any bytes, with every compression."""

import timeit
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation.records import consuming, kafka_batches
from services.allocation.records.kafka_batches import FetchedRecords
from tests.any_headers import Headers, batch_of
from tests.raw_batches import batch, record

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
LATIN = b"kampagne-gr\xfcn"


PLACE = TopicPartition("spend.events", 3)


def read(data: bytes) -> list[Any]:
    batches, found = FetchedRecords(data).batches(PLACE), []
    while batches.has_next():
        batch = batches.next_batch()
        assert batch.validate_crc()
        found += [record for part in batch for record in part]
    return found


def headers_of(data: bytes) -> list[list[tuple[str, bytes | None]]]:
    return [list(record.headers) for record in read(data)]


@pytest.fixture(params=[DefaultRecordBatch, _DefaultRecordBatchPy], ids=["compiled", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_batches, "DefaultRecordBatch", request.param)


def test_the_compiled_parser_is_installed_and_takes_only_utf_8() -> None:
    assert DefaultRecordBatch is not _DefaultRecordBatchPy
    batch = MemoryRecords(batch_of([[(LATIN, b"1")]])).next_batch()
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        list(batch)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("is_transactional", [0, 1])
def test_a_header_name_that_is_not_utf_8_is_escaped_and_no_record_is_lost(codec: int, is_transactional: int) -> None:
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
def test_every_record_is_read_once_whichever_record_has_the_foreign_name(bad: int) -> None:
    data = batch_of([[(LATIN, b"1")] if number == bad else [] for number in range(1101)])
    assert [record.offset for record in read(data)] == list(range(1101))


def test_a_control_batch_is_recognised() -> None:
    batch = FetchedRecords(batch_of([[]], is_transactional=1, is_control=True)).batches(PLACE).next_batch()
    assert batch.is_control_batch
    assert batch.is_transactional
    assert (batch.producer_id, batch.base_offset, batch.next_offset) == (7, 0, 1)
    assert next(batch).key == b"key"


# A length above 63 takes two bytes.
BYTES = st.binary(max_size=6) | st.integers(60, 67).map(lambda size: b"\xfc" * size)


@given(st.lists(st.lists(st.tuples(BYTES, st.none() | BYTES), max_size=3), max_size=5))
@settings(max_examples=300)
def test_any_headers_are_read(headers: list[Headers]) -> None:
    expected = [[(name.decode(errors="backslashreplace"), value) for name, value in each] for each in headers]
    assert headers_of(batch_of(headers or [[]])) == (expected or [[]])


def test_headers_with_foreign_bytes_are_read_nearly_as_fast_as_others() -> None:
    took = {}
    for name in (b"h", b"\xfc"):
        data = batch_of([[(name, b"")] * 900] * 100)
        took[name] = min(timeit.repeat(lambda data=data: read(data), number=1, repeat=25))  # type: ignore[misc]
    assert took[b"\xfc"] < 10 * took[b"h"]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_record_whose_last_header_exceeds_it_is_set_aside(cut: int) -> None:
    held = [record(b"v", headers=[(LATIN, b"1234567")], offset=number) for number in range(2)]
    short = held[1][:-cut]
    data = batch(held[0] + bytes([short[0] - 2 * cut]) + short[1:], 2)
    assert [each.offset for each in read(data)] == [0, 1]
    assert read(data)[1].cut.fault.reason == "malformed"


def test_the_time_is_that_of_the_broker_if_the_batch_says_so() -> None:
    data = bytearray(batch_of([[(LATIN, b"1")]]))
    data[22] |= 0x08  # the attribute of LogAppendTime
    data[35:43] = (1_800_000_000_000).to_bytes(8, "big")  # the largest timestamp
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    assert [record.timestamp for record in read(bytes(data))] == [1_800_000_000_000]


def test_a_record_without_foreign_bytes_comes_from_the_compiled_parser() -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
    builder.append(0, timestamp=5, key=b"key", value=b"value", headers=[])
    (record,) = read(bytes(builder.build()))
    assert type(record).__module__.endswith("_crecords.default_records")


def test_the_parser_is_installed_where_aiokafka_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"MemoryRecords", "PartitionRecords", "FetchResult"}
    for name in names:
        assert isinstance(getattr(fetcher, name), type)
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))  # undone after the test
    consuming.install()
    assert fetcher.MemoryRecords is FetchedRecords
    assert fetcher.PartitionRecords is consuming._ParsedRecords
    assert fetcher.FetchResult is consuming._Taken
    assert names <= set(fetcher.Fetcher._proc_fetch_request.__code__.co_names)
    assert {"FetchResult", "getall"} <= set(fetcher.Fetcher.fetched_records.__code__.co_names)
