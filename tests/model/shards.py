"""The shard of a Business Center, by murmur2 as Kafka's Java client computes it."""

MASK = 0xFFFFFFFF
MULTIPLIER = 0x5BD1E995


def murmur2(data: bytes) -> int:
    """Return the 32-bit hash of a key."""
    value = 0x9747B28C ^ len(data)
    whole = len(data) - len(data) % 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * MULTIPLIER & MASK
        word = (word ^ word >> 24) * MULTIPLIER & MASK
        value = value * MULTIPLIER & MASK ^ word
    if whole < len(data):
        value = (value ^ int.from_bytes(data[whole:], "little")) * MULTIPLIER & MASK
    value = (value ^ value >> 13) * MULTIPLIER & MASK
    return value ^ value >> 15


def shard_of(business_center_id: str, shards: int) -> int:
    """Return the partition of a Business Center's id."""
    return (murmur2(business_center_id.encode()) & 0x7FFFFFFF) % shards
