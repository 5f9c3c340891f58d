"""Docker's health check: exits with 0 if the service in this container is ready."""

import http.client
import os
import sys

_TIMEOUT_SECONDS = 3


def main() -> int:
    """Ask /readyz and print its answer, which `docker inspect` shows; return the exit code."""
    port = int(os.environ.get("DRAWDOWN_HEALTH_PORT") or os.environ.get("DRAWDOWN_HTTP_PORT") or "8080")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.read(4096).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer at port {port}: {error}")
        return 1
    finally:
        connection.close()
    return 0 if response.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
