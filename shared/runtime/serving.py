"""An HTTP server that runs within a service: uvicorn, which leaves the process to the service."""

import contextlib
from collections.abc import Iterator

import uvicorn


class Server(uvicorn.Server):
    """Leaves the signals of the process alone: a service is cancelled, and tells the server to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield
