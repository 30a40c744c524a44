"""Several server processes behind one port: started together, one that dies is replaced, stopped together.

Python answers on one core a process. The kernel hands each new connection to one of the processes (SO_REUSEPORT), so a
caller that wants all of them opens several connections.
"""

from __future__ import annotations

import logging
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from serving.auth import host_and_port
from serving.told import Told

log = logging.getLogger(__name__)
START_S = 120.0  # to load a bundle, on a busy machine
GRACE_S = 20.0  # to stop, once drained: twice what a server gives its callers, so one that hangs has ended itself
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before a process that died is replaced
ANSWERS = re.compile(r"^serving .* on \S+:\d+$")


@dataclass
class _Worker:
    """One of the processes, and those that take its place."""

    command: Sequence[str]
    process: subprocess.Popen[str] = field(init=False)
    answers: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start a process, and read what it prints: that it answers. Else its pipe would fill."""
        self.answers.clear()
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, args=(self.process.stdout,), name="output", daemon=True).start()

    def _listen(self, printed: IO[str]) -> None:
        for line in printed:
            if ANSWERS.match(line.rstrip()):
                self.answers.set()


def serve(
    command: Callable[[int, str, Path], Sequence[str]],
    count: int,
    address: str,
    started: Callable[[int], None],
    place: Path | None = None,
    drain_seconds: float = 0.0,
) -> int:
    """Run `count` processes until SIGTERM or SIGINT; returns the status to end with.

    A process that ends before it ever answered, or does not answer in time, ends all: what keeps it from starting keeps
    every other one too.

    Args:
        command: of process n, on an address, with the file by which the processes agree on what answers.
        started: is called with the port once all of them answer.
        place: a folder for that file which nobody else writes to, nor cleans up; None: one for temporary files.
        drain_seconds: that each of them takes calls for, once it is told to stop.
    Raises:
        OSError: the address is taken or is none.
    """
    told = Told()
    host = address.rsplit(":", 1)[0]
    with (
        closing(reserved(address)) as reservation,
        tempfile.TemporaryDirectory(prefix=".processes-", dir=place) as folder,
    ):
        port: int = reservation.getsockname()[1]
        workers = [_Worker(command(n, f"{host}:{port}", Path(folder) / "agreed.json")) for n in range(count)]
        try:
            if not _all_answer(workers, told):
                return max(_end(workers, drain_seconds), 0 if told else 1)
            started(port)
            stops = threading.Event()
            watches = [
                threading.Thread(target=_replaced, args=(worker, stops), name=f"process {n}")
                for n, worker in enumerate(workers)
            ]
            for watch in watches:
                watch.start()
            told.wait()
            stops.set()
            for watch in watches:
                watch.join()
        finally:
            status = _end(workers, drain_seconds)
        return status


def reserved(address: str) -> socket.socket:
    """A socket that holds an address for processes that share it, and takes no connection itself.

    Raises OSError if another program has it, or if it is none.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(*host_and_port(address), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(place)  # fails where somebody listens, sharing or not
    shared = socket.socket(family, kind, protocol)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that has stopped linger
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(place)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # else it hides from the next one who looks
    return shared


def _all_answer(workers: Sequence[_Worker], told: Told) -> bool:
    """Wait until all of them answer; false where one ends, takes too long, or a signal comes first."""
    end = time.monotonic() + START_S
    while silent := [worker for worker in workers if not worker.answers.is_set()]:
        if told or any(worker.process.poll() is not None for worker in workers):
            return False
        if time.monotonic() > end:
            log.error("%d of %d server processes do not answer after %.0f s", len(silent), len(workers), START_S)
            return False
        time.sleep(0.05)
    return True


def _replaced(worker: _Worker, stops: threading.Event) -> None:
    """Start a process again whenever it ends, the later the less it lived."""
    wait_s = FIRST_WAIT_S
    while not stops.wait(0.1):
        if worker.process.poll() is None:
            wait_s = FIRST_WAIT_S if worker.answers.is_set() else wait_s
            continue
        log.error("a server process ended with status %s; another one starts", worker.process.returncode)
        if stops.wait(wait_s):
            return
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        try:
            worker.begin()
        except OSError as error:  # no memory, or no process, to be had just now
            log.error("a server process cannot be started: %s", error)


def _end(workers: Sequence[_Worker], drain_seconds: float) -> int:
    """Stop all, those that hang by force; the worst of their statuses."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    end = time.monotonic() + drain_seconds + GRACE_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("a server process hangs and is killed")
            worker.process.kill()
            worker.process.wait()
    return max(_status(worker) for worker in workers)


def _status(worker: _Worker) -> int:
    """How a process ended; one that was stopped while it started has nothing to finish."""
    code = worker.process.returncode
    return 0 if code == -signal.SIGTERM and not worker.answers.is_set() else abs(code)
