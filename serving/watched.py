"""What small files say, read again when they change: a new token or certificate counts without a restart.

What cannot be used is told once in the log, by its reason, and what was read before stays in use.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
EVERY_S = 1.0  # a change counts that soon
LARGEST_BYTES = 1024 * 1024


class FileError(ValueError):
    """A file cannot be used as it stands. The message names it and the reason, and repeats nothing of its content."""


class Watched(Generic[T]):
    """The value of some files; safe to call from threads.

    Contents are compared, not times of change: two changes within a clock's tick are two changes.

    Args:
        parse: the files' contents, in their order, to a value. Raises FileError.
    Raises:
        FileError: the files cannot be used from the start.
    """

    def __init__(self, paths: Sequence[Path], parse: Callable[..., T]) -> None:
        self._paths, self._parse = tuple(paths), parse
        self._lock = threading.Lock()
        self._next = time.monotonic() + EVERY_S
        self._contents: tuple[bytes | str, ...] = self._read()
        self._value = parse(*self._contents)

    def __call__(self) -> T:
        """The value as of at most `EVERY_S` seconds ago."""
        with self._lock:
            if time.monotonic() >= self._next:
                self._look()
                self._next = time.monotonic() + EVERY_S
            return self._value

    def _look(self) -> None:
        contents: tuple[bytes | str, ...]
        try:
            contents, refused = self._read(), None
        except FileError as error:
            contents, refused = (str(error),), error
        if contents == self._contents:
            return
        self._contents = contents
        names = ", ".join(str(path) for path in self._paths)
        try:
            if refused is not None:
                raise refused
            self._value = self._parse(*contents)
            log.info("%s: changed, and taken up", names)
        except FileError as error:
            log.error("%s: changed, and cannot be used; what was read before stays in use: %s", names, error)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(read(path) for path in self._paths)


def read(path: Path) -> bytes:
    """Raises FileError for a file that is absent, unreadable or no small file."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    if len(content) > LARGEST_BYTES:
        raise FileError(f"{path}: has more than {LARGEST_BYTES} bytes")
    return content
