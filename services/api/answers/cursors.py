"""Cursors that hold a number for each shard."""

from services.api.door.errors import invalid


def parse_numbers(text: str, shards: int) -> list[int]:
    """Return the numbers of a cursor, one for each shard.

    Args:
        text: whole numbers with dots between, as a pattern has checked.
        shards: how many shards there are.

    Raises:
        ApiError: 400 if there are more or fewer numbers than shards. What they leave out would be answered wrongly.

    """
    numbers = [int(number) for number in text.split(".")]
    if len(numbers) != shards:
        raise invalid(
            f"after should have {shards} numbers, one for each shard, and has {len(numbers)}:"
            " pass the `next` of an earlier answer"
        )
    return numbers
