"""A client that sends requests over many connections, each as soon as the previous one is answered.

It is a separate program, so that only the API delays the measured client. Its arguments are a port and the number of
connections; its standard input is a JSON list of requests. It prints a line when it has begun.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from itertools import cycle


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> int:
    """Send a request, read the whole answer, and return its status."""
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    return int(head.split()[1])


async def _ask_forever(port: int, requests: Iterator[bytes]) -> None:
    while True:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                await exchange(reader, writer, next(requests))


async def _main() -> None:
    port, connections = map(int, sys.argv[1:])
    requests = cycle([each.encode() for each in json.load(sys.stdin)])
    asking = [asyncio.create_task(_ask_forever(port, requests)) for _ in range(connections)]
    print("asking", flush=True)
    await asyncio.gather(*asking)


if __name__ == "__main__":
    asyncio.run(_main())
