"""Tokens that are good no more, although they have not expired: a file of their ids, read again when it changes."""

from pathlib import Path

import structlog


class Withdrawn:
    """The `jti`s that a file holds, one a line; what stands behind a `#` is a note. Without a file there are none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._ids: frozenset[str] = frozenset()

    def has(self, id_: object) -> bool:
        """Whether the token of this id was withdrawn. While the file cannot be read, what it last held counts."""
        if self._path is None:
            return False
        try:
            self._read_if_changed(self._path)
        except OSError as error:
            if self._seen is not None:
                structlog.get_logger().error("the withdrawn tokens are not read: put the file back", error=str(error))
            self._seen = None
        return id_ in self._ids

    def _read_if_changed(self, path: Path) -> None:
        about = path.stat()
        seen = (about.st_ino, about.st_size, about.st_mtime_ns)
        if seen != self._seen:
            lines = path.read_text(errors="replace").splitlines()
            self._ids = frozenset(line.partition("#")[0].strip() for line in lines) - {""}
            self._seen = seen
