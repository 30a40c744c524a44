"""Files on disk: a finished one in the place of another, all or nothing; how a changed one is known; locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2): names are paths; the two change places


def state_of(files: Iterable[Path]) -> dict[str, list[int]]:
    """Name -> size and time of the last change. Raises FileNotFoundError for a file that is not there."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}


def write_whole(path: Path, text: str) -> None:
    """A file with this text, or what was there before: never a part of it. Its folder must be there."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(text)
    os.replace(staging, path)


def write_first(path: Path, content: bytes) -> None:
    """A file with this content, for its owner's eyes, unless there is one: of several writers the first one counts.

    Its folder must be there."""
    staging = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(os.open(staging, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
        os.link(staging, path)
    except FileExistsError:
        pass
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; at the end it becomes `folder`. After any failure `folder` is what it was.

    After a kill or a loss of power at any point `folder` is the whole old one or the whole new one; the other may lie
    beside it (`.<name>-...`). Not so on a file system that cannot exchange two folders (NFS): there a kill between two
    renames leaves the old one as `.<name>-...-replaced`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staging
        os.chmod(staging, folder.stat().st_mode & 0o7777 if folder.exists() else 0o777 & ~_umask())
        _sync(staging)
        if folder.exists():
            _exchange(staging, folder)
        else:
            os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(path: Path, *, shared: bool, busy: str) -> Iterator[None]:
    """A lock that many processes of a machine may share, or one has alone; it ends with its process.

    Raises ValueError with the words `busy` where another process holds it otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(busy) from error
        yield


def _umask() -> int:
    """Which rights new folders are not given; the system tells it only to who sets it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    """Have all of a folder on disk."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Two folders change places."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    if libc.renameat2(*paths, RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    between = one.with_name(f"{one.name}-replaced")
    os.rename(other, between)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(between, other)
        raise
    os.rename(between, one)
