"""An HTTP server that runs within a service: uvicorn, without its handling of signals."""

import contextlib
from collections.abc import Iterator

import uvicorn


class Server(uvicorn.Server):
    """Installs no signal handlers: a signal cancels the service, which then tells the server to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield
