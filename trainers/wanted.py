"""What was asked for and had no vector: a list that servers write, and that the next embedding run reads.

One file a vector space, one line of JSON a key, with the moment for which it was first asked. Lines are appended, by
several servers too, and never removed: a key that has a vector by now is known by its vector.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.workspace import Workspace

MOST = 1000  # keys of one space: what callers make up must not become a night's work of a language model
LONGEST = 256  # characters of a key


def folder(workspace: Workspace) -> Path:
    return workspace.knowledge / "wanted"


def path_of(workspace: Workspace, space: str) -> Path:
    return folder(workspace) / f"{space}.jsonl"


def read(workspace: Workspace, space: str) -> dict[str, int]:
    """Key -> the earliest moment for which it was asked, microseconds UTC. A line cut off by a crash is left out."""
    path = path_of(workspace, space)
    found: dict[str, int] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            key, time_us = json.loads(line)
        except ValueError:
            continue
        found[key] = min(time_us, found.get(key, time_us))
    return found


class WantedList:
    """Takes keys without a vector in at once, and writes those that are new when told to; safe to call from threads.

    Args:
        spaces: that keys may be wanted of.
    """

    def __init__(self, workspace: Workspace, spaces: Iterable[str]) -> None:
        self._workspace = workspace
        self._known = {space: set(read(workspace, space)) for space in spaces}
        self._new: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()

    def add(self, space: str, keys: Iterable[str], time_us: int) -> None:
        """Keys that a request of this moment found without a vector; those beyond `MOST` and `LONGEST` are left out."""
        known = self._known[space]
        for key in keys:
            if key in known or len(key) > LONGEST:
                continue
            with self._lock:
                if len(known) < MOST and key not in known:
                    known.add(key)
                    self._new.append((space, key, time_us))

    def arrived(self, space: str, keys: pa.Array) -> None:
        """Keys that have a vector now are wanted no longer, and make room for others."""
        with self._lock:
            known = pa.array(list(self._known[space]), pa.string())
            self._known[space].difference_update(known.filter(pc.is_in(known, value_set=keys)).to_pylist())

    def write(self) -> None:
        """Append what is new. Raises OSError; it is kept for the next time then."""
        with self._lock:
            new, self._new = self._new, []
        try:
            while new:
                space = new[0][0]
                path = path_of(self._workspace, space)
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps([key, us]) for of, key, us in new if of == space]
                with path.open("a") as file:  # ASCII: a key's own line breaks, of any alphabet, are escaped
                    # The break comes first: a line that a crash or a full disk cut off takes no other with it.
                    file.write("".join(f"\n{line}" for line in lines))
                new = [line for line in new if line[0] != space]
        finally:
            with self._lock:
                self._new = new + self._new
