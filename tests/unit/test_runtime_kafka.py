"""Which partition a key belongs to."""

import pytest

from shared.runtime.kafka import murmur2_partition


# The hashes are those that Apache Kafka's own UtilsTest expects of its Java client.
@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
@pytest.mark.parametrize("partitions", [1, 4, 7, 1024])
def test_a_key_has_the_partition_of_the_java_client(key: bytes, murmur2: int, partitions: int) -> None:
    assert murmur2_partition(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions
