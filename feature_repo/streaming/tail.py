"""A file that grows by whole lines, followed through rotation by renaming."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from feature_repo.streaming.source import Message

PAUSE_S = 0.05
MOST_BYTES = 64 * 1024  # of a line; what is longer is no click, and is passed on cut off
RENAMED = re.compile(r"[-._][-._:T\d]*\d")  # what then stands behind the name: a number or a date
MARK_LENGTH = 16


class FileTail:
    """Lines of `path`; one without its end is left until the end is written.

    A file that was renamed, and whose place another has taken, is read on until there is something in a newer one, for
    its writer may keep it open. Then come the newer ones, oldest first by the time of their last change, as long as
    they lie in the same folder and are named after it (`clicks.jsonl.1`, `clicks.jsonl-20260301`). So it is after a
    restart. A line that is written late may bring its file once more. Reading begins with the oldest of them, also
    where the file that was being read is gone. One that was cut short is read from its beginning.

    A position is inode, offset and a hash of the file's first line: a later file may have the inode of a lost one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file: BinaryIO | None = None
        self._left: tuple[int, int] | None = None  # its age when another was found in its place

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    def resume(self, position: str | None) -> None:
        self._close()
        if position is None:
            return
        inode, offset, *mark = position.split(":")  # those of older versions have no mark
        for path in self._named_alike():
            file = _opened(path, int(inode))
            if file is None:
                continue
            if mark in ([], [_mark(file)]):
                file.seek(int(offset))
                self._file = file
                return
            file.close()

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
        """Whole lines up to the end of what is there; where there are none, those of the next file, if there is one."""
        while True:
            # Looked for before this file is read: who writes to the next one has written here for the last time.
            following = self._following()
            found = [] if self._file is None else _whole_lines(self._file, most)
            if found or following is None:
                return found
            file = _opened(*following)
            if file is None:
                return []  # it was renamed just now
            self._close()
            self._file = file

    def _following(self) -> tuple[Path, int] | None:
        """Name and inode of the oldest file with anything in it that is newer than the one being read."""
        # States are asked for in the direction in which files move, so that none slips through while they do.
        last = _state(self.path)
        held = None if self._file is None else os.fstat(self._file.fileno())
        if held is not None and last is not None and held.st_ino == last.st_ino:
            return None
        if held is not None and self._left is None:
            self._left = _age(held)
        renamed = [path for path in self._named_alike() if RENAMED.fullmatch(path.name[len(self.path.name) :])]
        files = [(path, found) for path in renamed if (found := _state(path)) is not None and self._comes_after(found)]
        files.sort(key=lambda file: _age(file[1]))
        if last is not None:
            files.append((self.path, last))
        return next(((path, found.st_ino) for path, found in files if found.st_size), None)

    def _named_alike(self) -> list[Path]:
        """`clicks.jsonl`, `clicks.jsonl.1`, `clicks.jsonl.2`, ... `clicks.jsonl.10`."""
        found = self.path.parent.glob(f"{escape(self.path.name)}*")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _comes_after(self, found: os.stat_result) -> bool:
        if self._file is None or self._left is None:
            return True
        return found.st_ino != os.fstat(self._file.fileno()).st_ino and _age(found) > self._left

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._left = None, None


def _whole_lines(file: BinaryIO, most: int) -> list[Message]:
    if os.fstat(file.fileno()).st_size < file.tell():
        file.seek(0, os.SEEK_END)  # what was read ahead is forgotten
        file.seek(0)
    found: list[tuple[int, bytes]] = []
    while len(found) < most:
        start = file.tell()
        line = file.readline(MOST_BYTES)
        if len(line) < MOST_BYTES and not line.endswith(b"\n"):
            file.seek(start)
            break
        if not line.endswith(b"\n"):
            _skip_line(file)
        if line.strip():
            found.append((file.tell(), line.strip()))
    inode, mark = os.fstat(file.fileno()).st_ino, _mark(file) if found else ""
    return [Message(f"{inode}:{end}:{mark}", line) for end, line in found]


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
        pass


def _mark(file: BinaryIO) -> str:
    """Of the first line, which stays as it is once it is whole."""
    line = os.pread(file.fileno(), MOST_BYTES, 0).partition(b"\n")[0]
    return hashlib.sha256(line).hexdigest()[:MARK_LENGTH]


def _state(path: Path) -> os.stat_result | None:
    """None for what is no file, or not there."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found if stat.S_ISREG(found.st_mode) else None
    return None


def _opened(path: Path, inode: int) -> BinaryIO | None:
    """None where the file of this inode has another name by now, or is gone."""
    found = _state(path)
    if found is None or found.st_ino != inode:
        return None
    with suppress(FileNotFoundError):
        file = path.open("rb")
        if os.fstat(file.fileno()).st_ino == inode:
            return file
        file.close()
    return None


def _age(found: os.stat_result) -> tuple[int, int]:
    """Orders files as they were written."""
    return found.st_mtime_ns, found.st_ino
