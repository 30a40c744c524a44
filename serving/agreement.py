"""What the processes behind one port agree on: which bundle answers.

Whoever changes it writes it into one small file; the others look at it twice a second and follow, back to the bundle of
before where that is the one that is meant, else by loading it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from feature_repo.files import write_whole
from serving.live import Changing, Live
from serving.pipeline import Pipeline

log = logging.getLogger(__name__)
EVERY_S = 0.5
AGAIN_S = 60.0  # after which what could not be followed is tried again


@dataclass(frozen=True)
class Agreed:
    """A bundle by its name in the workspace, and its version: a name may mean another bundle later."""

    bundle: str
    version: str


def say(path: Path, agreed: Agreed) -> None:
    """Let all know."""
    write_whole(path, json.dumps(asdict(agreed)))


def said(path: Path) -> Agreed | None:
    """What was said last, if anything."""
    return Agreed(**json.loads(path.read_text())) if path.is_file() else None


class Follower:
    """Keeps one process to what was agreed; and ends it when the process that started it is gone.

    Args:
        load: opens the bundle of a name.
    """

    def __init__(self, path: Path, live: Live, load: Callable[[str], Pipeline], every_s: float = EVERY_S) -> None:
        self._path, self._live, self._load, self._every_s = path, live, load, every_s
        self._parent = os.getppid()
        self._refused: Agreed | None = None
        self._again = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()

    def look(self) -> None:
        """Follow, where something else is agreed on than answers here. Raises what `said` raises."""
        agreed = said(self._path)
        if agreed is None or self._is_settled(agreed):
            return
        try:
            with self._live.changing():
                # What an operator changed here meanwhile was said before the change ended: it is not to be undone.
                agreed = said(self._path) or agreed
                if not self._is_settled(agreed):
                    self._follow(agreed)
        except Changing:
            pass  # looked at again once that is done
        except Exception as error:
            self._refused, self._again = agreed, time.monotonic() + AGAIN_S
            is_known = isinstance(error, (ValueError, OSError))
            log.error(
                "cannot follow to %s, version %s: %s", agreed.bundle, agreed.version, error, exc_info=not is_known
            )

    def _is_settled(self, agreed: Agreed) -> bool:
        """Whether it answers, or could not be followed to a moment ago."""
        if agreed.version == version_of(self._live.current):
            return True
        return agreed == self._refused and time.monotonic() < self._again

    def _follow(self, agreed: Agreed) -> None:
        previous = self._live.previous
        if previous is not None and version_of(previous) == agreed.version:
            self._live.roll_back()
        else:
            self._live.reload(lambda: self._agreed_on(agreed), agreed.bundle)
        log.info("followed to %s, version %s", agreed.bundle, agreed.version)

    def _agreed_on(self, agreed: Agreed) -> Pipeline:
        pipeline = self._load(agreed.bundle)
        if (found := version_of(pipeline)) != agreed.version:
            pipeline.close()
            raise ValueError(f"the bundle of that name has version {found} by now")
        return pipeline

    def _run(self) -> None:
        while not self._ending.wait(self._every_s):
            if os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                self.look()
            except Exception:  # whatever it is: without this thread the process would neither follow nor end
                log.exception("cannot read what was agreed on")


def version_of(pipeline: Pipeline) -> str:
    return pipeline.bundle.manifest.version
