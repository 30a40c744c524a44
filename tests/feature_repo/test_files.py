"""A folder in the place of another one: the whole old or the whole new one, whatever happens meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from feature_repo import files
from feature_repo.files import replacing

NAMES = ("a", "b/c")


def write(folder: Path, text: str) -> None:
    with replacing(folder) as staging:
        (staging / "b").mkdir()
        for name in NAMES:
            (staging / name).write_text(text)


def content(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in NAMES}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "folder", "old")
    return tmp_path / "folder"


def test_the_new_one_takes_the_place_of_the_old_one_and_nothing_lies_beside(folder):
    write(folder, "new")
    assert content(folder) == {"new"} and [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_failure_leaves_the_old_one(folder):
    with pytest.raises(ZeroDivisionError), replacing(folder) as staging:
        (staging / "a").write_text("new")
        raise ZeroDivisionError
    assert content(folder) == {"old"} and [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_killed_at_any_line_the_whole_old_or_the_whole_new_one_is_there(folder):
    found = []
    while killed_at(len(found), lambda: write(folder, "new")):
        found.append(content(folder))
        write(folder, "old")
    assert content(folder) == {"new"}
    assert found == [{"old"}] * found.count({"old"}) + [{"new"}] * found.count({"new"})
    assert {"old"} in found and {"new"} in found


def killed_at(line: int, work: Callable[[], None]) -> bool:
    """Whether a child comes as far as its so-manieth line of `files`, before which it is killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.settrace(Killer(line).trace)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class Killer:
    def __init__(self, line: int) -> None:
        self._left = line

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        return self.trace


def test_what_is_put_in_place_is_on_disk_by_then(folder, monkeypatch):
    synced = set()
    fsync, exchange = os.fsync, files._exchange
    monkeypatch.setattr(os, "fsync", lambda file: fsync(file) or synced.add(os.fstat(file).st_ino))

    def exchanged(one: Path, other: Path) -> None:
        assert {path.stat().st_ino for path in (one, *one.rglob("*"))} == synced
        exchange(one, other)

    monkeypatch.setattr(files, "_exchange", exchanged)
    write(folder, "new")
    assert content(folder) == {"new"} and len(synced) == 4


def test_a_file_system_that_cannot_exchange_folders_renames_them(folder, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *of, **how: SimpleNamespace(renameat2=lambda *of: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINVAL)
    write(folder, "new")
    assert content(folder) == {"new"} and [path.name for path in folder.parent.iterdir()] == ["folder"]
    rename = os.rename

    def refused(one: Path, other: Path) -> None:
        if other == folder and not one.name.endswith("-replaced"):
            raise PermissionError
        rename(one, other)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PermissionError):
        write(folder, "newer")
    assert content(folder) == {"new"} and [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_another_error_of_the_exchange_leaves_the_old_one(folder, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *of, **how: SimpleNamespace(renameat2=lambda *of: -1))
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EACCES)
    with pytest.raises(PermissionError, match="folder"):
        write(folder, "new")
    assert content(folder) == {"old"} and [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("mode", [None, 0o755, 0o2770])
def test_a_replaced_folder_is_open_to_whom_it_was_open(folder, mode):
    """And a new one to whom the umask lets in, not to its owner alone."""
    if mode is None:
        shutil.rmtree(folder)
    else:
        folder.chmod(mode)
    before = os.umask(0o022)
    try:
        with replacing(folder) as staging:
            (staging / "new").touch()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == (0o755 if mode is None else mode)


def test_of_several_writers_the_first_one_counts_and_nothing_lies_beside(tmp_path):
    path = tmp_path / "said"
    for content in (b"first", b"second"):
        files.write_first(path, content)
    assert path.read_bytes() == b"first" and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_first(tmp_path / "said", b"first")
    assert not list(tmp_path.iterdir())
