"""Withdrawn tokens: a file with the ids of tokens that are no longer valid. It is read again when it changes."""

from pathlib import Path

import structlog


class Withdrawn:
    """The `jti` claims in a file, one a line, with notes after `#`. Without a file no token is withdrawn."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._ids: frozenset[str] = frozenset()

    def has(self, id_: object) -> bool:
        """Return whether the token of this id was withdrawn. While the file is unreadable, its last content counts."""
        if self._path is None:
            return False
        try:
            self._read_if_changed(self._path)
        except OSError as error:
            if self._seen is not None:
                structlog.get_logger().error(
                    "the file of withdrawn tokens cannot be read: restore it", error=str(error)
                )
            self._seen = None
        return id_ in self._ids

    def _read_if_changed(self, path: Path) -> None:
        about = path.stat()
        seen = (about.st_ino, about.st_size, about.st_mtime_ns)
        if seen != self._seen:
            lines = path.read_text(errors="replace").splitlines()
            self._ids = frozenset(line.partition("#")[0].strip() for line in lines) - {""}
            self._seen = seen
