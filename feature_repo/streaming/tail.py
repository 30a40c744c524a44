"""A file that grows by whole lines, followed through rotation by renaming."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from feature_repo.streaming.source import Message

PAUSE_S = 0.05
MOST_BYTES = 64 * 1024  # of a line; what is longer is no click, and is passed on cut off


class FileTail:
    """Lines of `path`; one without its end is left until the end is written.

    When the file is renamed and another takes its place, the old one is read to its end first, also after a restart, as
    long as it lies in the same folder. A file that was cut short is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file: BinaryIO | None = None

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    def resume(self, position: str | None) -> None:
        self._close()
        if position is None:
            return
        inode, offset = map(int, position.split(":"))
        for path in (self.path, *sorted(self.path.parent.glob(f"{self.path.name}*"))):
            if path.exists() and path.stat().st_ino == inode:
                self._file = path.open("rb")
                self._file.seek(offset)
                return

    def read(self, most: int, wait_s: float) -> list[Message]:
        until = time.monotonic() + wait_s
        while True:
            found = self._lines(most)
            if found or time.monotonic() >= until:
                return found
            time.sleep(PAUSE_S)

    def done(self, messages: Sequence[Message]) -> None:
        """The position that was committed is all."""

    def _lines(self, most: int) -> list[Message]:
        """Whole lines up to the end of what is there; then on to the file that has taken its place, if one has."""
        if self._file is None:
            if not self.path.exists():
                return []
            self._file = self.path.open("rb")
        replaced = not self.path.exists() or self.path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
        found = self._whole_lines(self._file, most)
        if not found and replaced:
            self._close()
        return found

    def _whole_lines(self, file: BinaryIO, most: int) -> list[Message]:
        inode = os.fstat(file.fileno()).st_ino
        found: list[Message] = []
        while len(found) < most:
            start = file.tell()
            line = file.readline(MOST_BYTES)
            if len(line) < MOST_BYTES and not line.endswith(b"\n"):
                file.seek(start)
                break
            if not line.endswith(b"\n"):
                self._skip_line(file)
            if line.strip():
                found.append(Message(f"{inode}:{file.tell()}", line.strip()))
        return found

    def _skip_line(self, file: BinaryIO) -> None:
        while (rest := file.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
            pass

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
