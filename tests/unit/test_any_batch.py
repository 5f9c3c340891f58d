"""Reading any batch ends, within bounds, and names the offsets of what cannot be decided."""

import json
import struct
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation.records import batch_bounds, consuming, kafka_batches
from services.allocation.records.kafka_batches import FetchedRecords
from services.allocation.records.record_decoding import Raw, decode_command, decode_event
from shared.contracts.commands import SentCommand
from tests.raw_batches import (
    GZIP,
    LZ4,
    PACK,
    SNAPPY,
    ZSTD,
    batch,
    bombs,
    field,
    message,
    mines,
    record,
    record_of_many_headers,
    varint,
)
from tests.raw_batches import records as packed_records
from tests.servers import memory_of

PLACE = TopicPartition("spend.events", 3)
KIB, MIB = 1024, 1024 * 1024
SECONDS = 5.0  # for the worst batch, on a busy machine


class Assignment:
    """An assignment of one partition, with what taking records needs of it."""

    active, paused = True, False

    def __init__(self, position: int) -> None:
        self.position = position

    def state_value(self, _partition: TopicPartition) -> "Assignment":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MemoryRecords", "PartitionRecords", "FetchResult"):
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))  # undone after the test
    monkeypatch.setattr(kafka_batches, "_bad_crcs", {})
    consuming.install()


def fetched(data: bytes, offset: int = 0, aborted: Any = None) -> tuple[Any, Assignment]:
    """Return what a fetch gave, in the form in which the consumer holds it."""
    found = fetcher.MemoryRecords(data)
    parsed = fetcher.PartitionRecords(
        PLACE, found, aborted, offset, consuming.parsed, None, True, fetcher.READ_COMMITTED
    )
    assignment = Assignment(offset)
    return fetcher.FetchResult(PLACE, partition_records=parsed, assignment=assignment, backoff=0), assignment


def takes(data: bytes, offset: int = 0, most: int = 5_000, aborted: Any = None) -> tuple[list[list[Any]], int]:
    """Return the records, take by take, and the offset where reading goes on."""
    result, assignment = fetched(data, offset, aborted)
    found = []
    while result.has_more():
        found.append(result.getall(most))
        if result.has_more():
            assert assignment.position == found[-1][-1].offset + 1
    return found, assignment.position


def read(data: bytes, offset: int = 0, aborted: Any = None) -> tuple[list[Any], int]:
    found, position = takes(data, offset, aborted=aborted)
    return [each for taken in found for each in taken], position


def cut(data: bytes, offset: int = 0) -> tuple[Raw, int]:
    """Return the one record that stands for a batch, and the offset where reading goes on."""
    (found,), position = read(data, offset)
    assert isinstance(found, Raw)
    assert found.cut is not None
    assert found.value is None
    return found, position


def check_batch_is_set_aside(data: bytes, first: int, last: int, reason: str) -> None:
    found, position = cut(data, first)
    held = found.cut
    assert held is not None
    assert (found.topic, found.partition, found.offset, held.first_offset) == (*PLACE, last, first)
    assert position == last + 1
    assert (held.fault.reason, held.is_batch) == (reason, True)
    assert (held.whole_bytes, held.whole_sha256, held.kept) == (len(data), sha256(data).digest(), data[:4096])
    for told in (f"from offset {first} to {last} ", f" {len(data)} bytes", sha256(data).hexdigest()):
        assert told in held.fault.detail
    assert len(held.fault.detail) < 500


@pytest.mark.parametrize("name", bombs(17))
def test_a_batch_that_unpacks_beyond_the_bound_becomes_one_record_in_quarantine(name: str) -> None:
    codec, packed = bombs(17)[name]
    began = time.monotonic()
    check_batch_is_set_aside(batch(packed, 900, codec=codec, offset=70), 70, 969, "too_large")
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", mines())
def test_hundreds_of_thousands_of_compressed_pieces_take_a_bounded_time(name: str) -> None:
    codec, packed = mines()[name]
    began = time.monotonic()
    check_batch_is_set_aside(batch(packed, 3, codec=codec), 0, 2, "malformed")
    assert time.monotonic() - began < SECONDS


def test_bombs_of_every_codec_take_no_more_memory_than_the_bound() -> None:
    """They are tried one after the other, in a process of its own."""
    before, after = memory_of(
        """
        from tests.raw_batches import batch, bombs, mines
        from services.allocation.records.kafka_batches import FetchedRecords
        from aiokafka.structs import TopicPartition
        made = [batch(held, 9, codec=codec) for codec, held in [*bombs(200).values(), *mines().values()]]
        measure()
        for data in made:
            batches = FetchedRecords(data).batches(TopicPartition("spend.events", 0))
            (part,) = list(batches.next_batch())
            assert part[0].cut.is_batch
        measure()
        """
    )
    assert after - before < 64 * MIB


def empty_records(count: int) -> bytes:
    return bytes(PACK["zstd"][1](packed_records([b""] * count)))


def test_a_batch_with_more_records_than_any_valid_batch_becomes_one_record_in_quarantine() -> None:
    most = batch_bounds.RECORDS_OF_A_KAFKA_BATCH
    found, position = takes(batch(empty_records(most), most, codec=ZSTD))
    assert (sum(map(len, found)), position) == (most, most)
    one_more, many = (batch(empty_records(count), count, codec=ZSTD) for count in (most + 1, 1_150_000))
    began = time.monotonic()
    check_batch_is_set_aside(one_more, 0, most, "too_large")
    check_batch_is_set_aside(many, 0, 1_149_999, "too_large")
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("says", [0, 1, -5, batch_bounds.RECORDS_OF_A_KAFKA_BATCH, 2**31 - 1])
def test_a_batch_header_with_a_wrong_count_of_its_many_records_is_not_believed(says: int) -> None:
    many = batch_bounds.RECORDS_OF_A_KAFKA_BATCH + 1
    check_batch_is_set_aside(batch(empty_records(many), says, codec=ZSTD, last=many - 1), 0, many - 1, "malformed")


def test_a_batch_of_only_valid_records_never_exceeds_the_bound_of_records() -> None:
    """The shortest valid spend and command are repeated until they fill what a batch may unpack to."""
    actor = {"id": "a", "role": "admin"}
    shortest = {
        "event_id": str(UUID(int=0)), "type": "spend", "business_center_id": "b", "ad_account_id": "a",
        "campaign_id": "c", "amount": "1", "currency": "USD", "occurred_at": "2026-11-21T12:00:00Z",
    }  # fmt: skip
    commanded = {
        "command_id": str(UUID(int=0)), "type": "repay_credit", "business_center_id": "b", "amount": "1",
        "issued_at": "2026-11-21T12:00:00Z", "actor": actor,
    }  # fmt: skip
    spent, repaid = (json.dumps(each, separators=(",", ":")).encode() for each in (shortest, commanded))
    attributes = {"ce_id": "event_id", "ce_time": "occurred_at"}
    headers = [("ce_specversion", b"1.0"), *((name, shortest.pop(told).encode()) for name, told in attributes.items())]
    data = json.dumps(shortest, separators=(",", ":")).encode()
    assert isinstance(decode_event(spent, []), tuple)
    assert isinstance(decode_event(data, headers), tuple)
    assert isinstance(decode_command(repaid), SentCommand)
    bare = [(name.encode(), held) for name, held in headers]
    least = min(map(len, (record(spent), record(data, headers=bare), record(repaid))))
    assert batch_bounds.UNPACKED_KAFKA_BATCH_BYTES // least < batch_bounds.RECORDS_OF_A_KAFKA_BATCH


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_a_batch_of_exactly_the_bound_is_read_and_one_byte_more_is_refused(
    pack: tuple[int, Callable[[bytes], bytes]],
) -> None:
    codec, packed = pack
    small = [record(b"x" * 60 * KIB, offset=number) for number in range(273)]
    rest = batch_bounds.UNPACKED_KAFKA_BATCH_BYTES - sum(map(len, small))
    last = record(b"y" * (rest - 12), offset=273)
    inside = b"".join([*small, last]) + b""
    inside = inside[: -len(last)] + record(
        b"y" * (rest - 12 - (len(inside) - batch_bounds.UNPACKED_KAFKA_BATCH_BYTES)), offset=273
    )
    assert len(inside) == batch_bounds.UNPACKED_KAFKA_BATCH_BYTES
    found, position = takes(batch(packed(inside), 274, codec=codec))
    assert len(found) == 2, "eight megabytes at once, not sixteen"
    assert position == 274
    check_batch_is_set_aside(batch(packed(inside + b"\0"), 274, codec=codec), 0, 273, "too_large")


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_a_compressed_batch_is_read_like_an_uncompressed_one(pack: tuple[int, Callable[[bytes], bytes]]) -> None:
    codec, packed = pack
    values = [f"value {number}".encode() * (number % 50) for number in range(1_100)]
    data = batch(packed(packed_records(values, key=b"key")), len(values), codec=codec, offset=50)
    found, position = read(data + batch(packed_records([b"behind"]), 1, offset=1_150), offset=60)
    assert [each.value for each in found] == [*values[10:], b"behind"]
    assert [each.offset for each in found] == list(range(60, 1_151))
    assert {each.key for each in found[:-1]} == {b"key"}
    assert position == 1_151


GARBAGE = {
    "nothing": b"",
    "one byte": b"\0",
    "zeros": bytes(1_000),
    "text": b"no codec has ever written this" * 30,
    "broken gzip": PACK["gzip"][1](b"x" * 10_000)[:-9],
    "broken zstd": PACK["zstd"][1](bytes(range(256)) * 40)[:-3],
    "broken lz4": PACK["lz4"][1](bytes(range(256)) * 40)[:-9],
    "a snappy block that exceeds the batch": PACK["snappy in blocks"][1](b"x" * 10_000)[:-1],
    "a snappy block of a negative length": b"\x82SNAPPY\x00" + bytes(8) + b"\xff\xff\xff\xfc" * 9,
    "only the header of snappy": b"\x82SNAPPY\x00" + bytes(8),
}


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD, 5, 7])
@pytest.mark.parametrize("held", GARBAGE.values(), ids=GARBAGE)
def test_a_batch_that_does_not_unpack_becomes_one_record_in_quarantine(held: bytes, codec: int) -> None:
    check_batch_is_set_aside(batch(held, 5, codec=codec, offset=7), 7, 11, "malformed")


GOOD = packed_records([b"one", b"two"])
LONG = b"\xff" * 9 + b"\x01"
LIES = {
    "a head that counts 2^31 records": (batch(GOOD, 2**31 - 1), 2**31 - 2),
    "a head that counts fewer records": (batch(GOOD, 1), 0),
    "a head that counts a negative number": (batch(GOOD, -5, last=1), 1),
    "a head whose last offset lies before its first": (batch(GOOD, 2, last=-9), 0),
    "more records than offsets": (batch(GOOD, 2, last=0), 0),
    "a record longer than the batch": (batch(varint(1_000) + GOOD[1:], 2), 1),
    "a record longer than memory": (batch(varint(2**62) + GOOD, 2), 1),
    "a record of a negative length": (batch(varint(-100) + GOOD, 2), 1),
    "records of no length": (batch(b"\0" * 100_000, 100_000), 99_999),
    "a length without an end": (batch(b"\xff" * 100, 2), 1),
    "a key longer than the record": (batch(field(b"\0\0\0" + varint(99) + b"k" + b"\0\0"), 1), 0),
    "a key longer than memory": (batch(field(b"\0\0\0" + varint(2**62) + b"k" + b"\0\0"), 1), 0),
    "a key of the largest length": (batch(field(b"\0\0\0" + varint(2**63 - 1) + b"k" + b"\0\0"), 1), 0),
    "a value longer than the record": (batch(field(b"\0\0\0\0" + varint(2**31) + b"v\0"), 1), 0),
    "2^31 headers": (batch(field(b"\0\0\0\x01\x01" + varint(2**31) + b"\x02a\x01"), 1), 0),
    "a negative number of headers": (batch(field(b"\0\0\0\x01\x01" + varint(-1) + b"\0"), 1), 0),
    "a header longer than memory": (batch(field(b"\0\0\0\x01\x01" + varint(1) + varint(2**61) + b"\0"), 1), 0),
    "fields that do not fill the record": (batch(field(b"\0\0\0\x01\x01\0" + b"left over"), 1), 0),
    "numbers without an end": (batch(field(b"\0" + LONG * 3), 1), 0),
    "a record that ends within a number": (batch(field(b"\0\0\xff\xff\xff\xff\xff\xff"), 1), 0),
    "bytes after the records": (batch(GOOD + b"\0\0\0", 2), 1),
    "a record after the last": (batch(GOOD + record(b"three", offset=2), 2), 1),
    "decreasing offsets": (batch(record(b"one", offset=1) + record(b"two", offset=0), 2), 1),
    "a repeated offset": (batch(record(b"one") + record(b"two"), 2), 1),
    "an offset after the batch": (batch(record(b"one", offset=9), 1), 0),
    "an offset before the batch": (batch(record(b"one", offset=-9), 1), 0),
}


@pytest.mark.parametrize(("data", "last"), LIES.values(), ids=LIES)
def test_a_batch_with_false_claims_becomes_one_record_in_quarantine(data: bytes, last: int) -> None:
    began = time.monotonic()
    check_batch_is_set_aside(data, 0, last, "malformed")
    assert time.monotonic() - began < SECONDS


def test_bytes_after_the_last_record_cannot_be_set_aside_because_they_have_no_offset() -> None:
    """Records are read in portions. If a portion ends with the last record, nothing is left to set aside."""
    ends = set()
    for count in range(1, 600):
        found, position = read(batch(packed_records([b"x"] * (count + 1)), count))
        assert position == count
        assert found[-1].offset == count - 1
        ends.add(isinstance(found[-1], Raw))
    assert ends == {True, False}


def test_a_key_with_the_length_minus_two_is_read_as_null_as_in_kafka() -> None:
    """The broker takes any negative length for null, and stores it. aiokafka's parser fails with a SystemError."""
    odd = field(b"\0\0\0" + varint(-2) + field(b"value") + varint(0))
    found, _ = read(batch(odd, 1))
    assert [(each.key, each.value, each.headers) for each in found] == [(None, b"value", [])]


def test_records_before_a_broken_one_are_decided_and_the_rest_is_set_aside() -> None:
    good = packed_records([b"x"] * 600)
    data = batch(good + field(b"\0\0" + varint(600) + varint(2**40)) + record(b"lost", offset=601), 602, offset=100)
    found, position = read(data, 100)
    assert [each.offset for each in found] == [*range(100, 700), 701]
    assert found[-1].cut.first_offset == 700
    assert position == 702


def test_a_batch_whose_first_records_are_already_decided_is_set_aside_from_the_next_one() -> None:
    found, position = cut(batch(b"junk", 10, codec=GZIP, offset=100), offset=105)
    assert found.cut is not None
    assert (found.cut.first_offset, found.offset, position) == (105, 109, 110)


def test_a_batch_with_a_wrong_crc_is_an_error_at_first_and_set_aside_when_fetched_again() -> None:
    data = bytearray(batch(GOOD, 2))
    data[-1] ^= 1
    for other in (bytes(data), bytes(data[:-2]) + b"\xff\xff"):
        with pytest.raises(Exception, match="Invalid CRC"):
            read(other)
    check_batch_is_set_aside(bytes(data[:-2]) + b"\xff\xff", 0, 1, "malformed")


TRANSACTIONAL, CONTROL = 0x10, 0x20


@pytest.mark.parametrize("held", [bombs(17)["gzip"], (GZIP, b"junk"), (ZSTD, bombs(17)["zstd"][1])])
def test_an_aborted_batch_is_skipped_whatever_its_content(held: tuple[int, bytes]) -> None:
    codec, packed = held
    aborted = batch(packed, 9, codec=codec, attributes=TRANSACTIONAL, producer=7)
    key = b"\0\0\0\0"  # of the marker that ends it
    marker = batch(record(b"", key=key), 1, offset=9, attributes=TRANSACTIONAL | CONTROL, producer=7)
    committed = batch(packed, 9, codec=codec, offset=10, attributes=TRANSACTIONAL, producer=7)
    found, position = read(aborted + marker + committed, aborted=[(7, 0)])
    assert [(each.cut.first_offset, each.offset) for each in found] == [(10, 18)]
    assert position == 19


@pytest.mark.parametrize("inside", [b"", b"junk", record(b"x"), record(b"x", key=b"\0")])
@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY])
def test_a_control_batch_without_content_is_skipped(inside: bytes, codec: int) -> None:
    data = batch(inside, 1, codec=codec, attributes=TRANSACTIONAL | CONTROL, producer=7)
    found, position = read(data + batch(record(b"behind"), 1, offset=1))
    assert [each.value for each in found] == [b"behind"]
    assert position == 2


def short(found: Any) -> tuple[str, int, int, int]:
    """Return why a record was cut short, and how much is left of it: value, key, headers."""
    held = found.cut
    headers = sum(len(name) + len(value or b"") for name, value in found.headers)
    return held.fault.reason, len(held.kept or b""), len(found.key or b""), headers


def test_a_record_is_too_large_if_its_value_key_or_headers_are() -> None:
    inside = [
        record(b"v" * 64 * KIB, key=b"k" * 15 * KIB),
        record(b"v" * (64 * KIB + 1), offset=1),
        record(b"v", key=b"k" * 100 * KIB, offset=2),
        record_of_many_headers(50_000, offset=3),
        record(b"v" * 64 * KIB, key=b"k" * 17 * KIB, offset=4),
        record(None, key=b"k" * 900 * KIB, headers=[(b"n" * 900 * KIB, b"w" * 900 * KIB)] * 2, offset=5),
        record_of_many_headers(500_000, b"v" * 900 * KIB, offset=6),
        record(b"v", headers=[(b"\xff" * 20, b"w" * 3_000)] * 30, offset=7),
        record(b"small", headers=[(b"trace", b"1")] * 200, offset=8),
    ]
    found, position = read(batch(b"".join(inside), 9))
    assert [each.offset for each in found] == list(range(9))
    assert position == 9
    assert [short(each)[:3] for each in found[1:8]] == [
        ("too_large", 4096, 0),
        ("too_large", 1, 4096),
        ("too_large", 1, 0),
        ("too_large", 4096, 4096),
        ("too_large", 0, 4096),
        ("too_large", 4096, 0),
        ("too_large", 1, 0),
    ]
    assert all(short(each)[3] <= 2 * 4096 for each in found[1:8])
    assert (found[0].value, found[8].value) == (b"v" * 64 * KIB, b"small")
    assert found[1].cut.whole_bytes == 64 * KIB + 1
    assert found[1].cut.whole_sha256 == sha256(b"v" * (64 * KIB + 1)).digest()
    assert sha256(b"v" * (64 * KIB + 1)).hexdigest() in found[1].cut.fault.detail


def test_millions_of_headers_take_no_more_memory_than_a_few_records() -> None:
    before, after = memory_of(
        """
        from tests.raw_batches import PACK, batch, record_of_many_headers
        from services.allocation.records.kafka_batches import FetchedRecords
        from aiokafka.structs import TopicPartition
        codec, pack = PACK["gzip"]
        of_one = record_of_many_headers(2_000_000)
        of_many = b"".join(record_of_many_headers(10_000, offset=number) for number in range(100))
        made = [batch(pack(of_one), 1, codec=codec), batch(pack(of_many), 100, codec=codec)]
        measure()
        for data in made:
            batches = FetchedRecords(data).batches(TopicPartition("spend.events", 0))
            found = [record for part in batches.next_batch() for record in part]
            assert {record.cut.fault.reason for record in found} == {"too_large"}
        measure()
        """
    )
    assert after - before < 100 * MIB


def test_a_read_is_bounded_by_the_number_of_records_and_by_bytes() -> None:
    few = batch(packed_records([b"x" * 60 * KIB] * 200), 200)
    many = batch(packed_records([b"x"] * 12_000), 12_000, offset=200)
    found, position = takes(few + many)
    assert [each.offset for taken in found for each in taken] == list(range(12_200))
    assert position == 12_200
    weights = [sum(len(each.value) for each in taken) for taken in found]
    assert max(weights) <= batch_bounds.BOUNDS.bytes + 300 * KIB
    assert max(len(taken) for taken in found) == 5_000
    assert len(found) == 4


@pytest.mark.parametrize(
    ("inside", "count"),
    [(record(b"x" * 15 * MIB), 1), (record_of_many_headers(2_500_000), 1), (b"\0" * 15 * MIB, 1)],
    ids=["a large value", "many headers", "nothing"],
)
def test_batches_that_unpack_to_many_bytes_but_few_records_are_taken_one_at_a_time(inside: bytes, count: int) -> None:
    """Hundreds of them fit into one fetch. Other shards and the lease get their turn between two of them."""
    codec, pack = PACK["zstd"]
    held = pack(inside)
    found, position = takes(b"".join(batch(held, count, codec=codec, offset=number) for number in range(9)))
    assert [[each.offset for each in taken] for taken in found if taken] == [[number] for number in range(9)]
    assert position == 9


@given(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8), most=st.integers(1, 900), start=st.integers(0, 900))
@settings(max_examples=60)
def test_every_record_is_taken_once_and_in_order(sizes: list[int], most: int, start: int) -> None:
    data, offset = b"", 0
    start = min(start, sum(max(size, 1) for size in sizes) - 1)
    for size in sizes:
        made = batch(packed_records([b"x"] * size), size, offset=offset, last=max(size - 1, 0))
        offset += max(size, 1)
        data += made if offset > start else b""
    found, position = takes(data, start, most)
    assert all(len(taken) <= most for taken in found)
    offsets = [each.offset for taken in found for each in taken]
    assert offsets == sorted(set(offsets))
    assert len(offsets) == len([each for each in _offsets(sizes) if each >= start])
    assert position == offset


def _offsets(sizes: list[int]) -> list[int]:
    """Return the offsets that hold a record. A batch without records takes one offset, which holds none."""
    found, offset = [], 0
    for size in sizes:
        found += list(range(offset, offset + size))
        offset += max(size, 1)
    return found


def decided(found: list[Any]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(each.offset, each.key, each.value) for each in found]


@pytest.mark.parametrize("magic", [0, 1])
def test_messages_of_the_old_formats_are_read(magic: int) -> None:
    data = b"".join(message(b"v%d" % n, magic=magic, key=b"k", offset=4 + n) for n in range(3))
    found, position = read(data, 4)
    assert decided(found) == [(4, b"k", b"v0"), (5, b"k", b"v1"), (6, b"k", b"v2")]
    assert position == 7


@pytest.mark.parametrize("codec", ["gzip", "snappy", "snappy in blocks", "lz4"])
@pytest.mark.parametrize("magic", [0, 1])
def test_compressed_messages_of_the_old_formats_are_read(codec: str, magic: int) -> None:
    number, pack = PACK[codec]
    first = 0 if magic else 40
    inside = b"".join(message(b"v%d" % n, magic=magic, offset=first + n) for n in range(3))
    data = message(pack(inside), magic=magic, codec=number, offset=42)
    found, position = read(data + message(b"behind", magic=magic, offset=43), 40)
    assert decided(found) == [(40, None, b"v0"), (41, None, b"v1"), (42, None, b"v2"), (43, None, b"behind")]
    assert position == 44
    assert decided(read(data, 41)[0]) == [(41, None, b"v1"), (42, None, b"v2")]


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize(
    ("held", "codec", "reason"),
    [
        (bombs(17)["gzip"][1], GZIP, "too_large"),
        (bombs(17)["snappy in blocks"][1], SNAPPY, "too_large"),
        (bombs(17)["lz4"][1], LZ4, "too_large"),
        (b"junk", GZIP, "malformed"),
        (None, GZIP, "malformed"),
        (PACK["gzip"][1](b""), GZIP, "malformed"),
        (PACK["gzip"][1](b"x" * 100), GZIP, "malformed"),
        (PACK["gzip"][1](message(bombs(17)["gzip"][1], codec=GZIP)), GZIP, "malformed"),
        (PACK["gzip"][1](message(b"x")[:-1]), GZIP, "malformed"),
        (PACK["gzip"][1](struct.pack(">qi", 0, -12) * 9), GZIP, "malformed"),
        (PACK["gzip"][1](struct.pack(">qi", 0, 2**31 - 1) * 9), GZIP, "malformed"),
        (PACK["zstd"][1](message(b"") * (batch_bounds.RECORDS_OF_A_KAFKA_BATCH + 1)), ZSTD, "too_large"),
    ],
)
def test_unreadable_messages_of_the_old_formats_become_one_record_in_quarantine(
    magic: int, held: bytes | None, codec: int, reason: str
) -> None:
    found, position = cut(message(held, magic=magic, codec=codec, offset=42), offset=40)
    assert found.cut is not None
    assert (found.cut.fault.reason, found.cut.first_offset, found.offset, position) == (reason, 40, 42, 43)


@given(
    held=st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3)), min_size=1, max_size=20),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    codec=st.sampled_from([(0, bytes), *PACK.values()]),
)
@settings(max_examples=400)
def test_any_change_to_a_batch_loses_no_offset(
    held: list[tuple[bytes, int]], changes: list[tuple[int, int]], codec: tuple[int, Callable[[bytes], bytes]]
) -> None:
    inside = bytearray(
        b"".join(record(value, headers=[(b"name", value)] * count, offset=n) for n, (value, count) in enumerate(held))
    )
    for place, value in changes:
        inside[place % len(inside)] = value
    number, pack = codec
    found, position = read(batch(pack(bytes(inside)), len(held), codec=number, offset=30), 30)
    reached = 30
    for each in found:
        assert (each.cut.first_offset if isinstance(each, Raw) and each.cut else each.offset) >= reached
        reached = each.offset + 1
    assert position == 30 + len(held)
    if reached != position:  # the last records have left a gap among their offsets, as compaction does
        assert len({each.offset for each in found}) <= len(held)


@given(st.binary(max_size=300), st.integers(0, 7), st.integers(-3, 40))
@settings(max_examples=300)
def test_reading_a_batch_of_any_bytes_reaches_its_end(held: bytes, codec: int, count: int) -> None:
    data = batch(held, count, codec=codec, last=max(count - 1, 0))
    assert read(data)[1] == max(count, 1)


def test_any_change_to_a_batch_header_still_moves_the_position_forward() -> None:
    good = bytearray(batch(GOOD, 2))
    for place in range(23, 61):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            data = bytearray(good)
            data[place] = value
            data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
            _, position = read(bytes(data))
            assert position > 0


def test_other_consumers_get_the_same_records_as_before() -> None:
    found = FetchedRecords(batch(GOOD, 2))
    parsed = fetcher.PartitionRecords(PLACE, found, None, 0, None, None, True, fetcher.READ_COMMITTED)
    taken = fetcher.FetchResult(PLACE, partition_records=parsed, assignment=Assignment(0), backoff=0).getall(10)
    assert [(each.topic, each.offset, each.value) for each in taken] == [
        ("spend.events", 0, b"one"),
        ("spend.events", 1, b"two"),
    ]
