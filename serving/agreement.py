"""What the processes behind one port agree on: which bundle answers, with which index and which key of tokens.

Whoever changes it writes it into one small file; the others look at it twice a second and follow, back to what answered
before where that is what is meant, else by loading it. The first to find no file says what answers in its process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from feature_repo.files import write_first, write_whole
from serving.live import Changing, Identity, Live, identity_of
from serving.pipeline import Pipeline

log = logging.getLogger(__name__)
EVERY_S = 0.5
AGAIN_S = 60.0  # after which what could not be followed is tried again


@dataclass(frozen=True)
class Agreed:
    """A bundle by its name in the workspace, and what it is: a name may mean another bundle later."""

    bundle: str
    identity: Identity


class Otherwise(ValueError):
    """A name means another bundle, index or key by now than what was agreed on."""


def say(path: Path, agreed: Agreed) -> None:
    """Let all know."""
    write_whole(path, _text(agreed))


def said(path: Path) -> Agreed | None:
    """What was said last, if anything."""
    if not path.is_file():
        return None
    words = json.loads(path.read_text())
    return Agreed(words["bundle"], Identity(**words["identity"]))


def _text(agreed: Agreed) -> str:
    return json.dumps(asdict(agreed))


class Follower:
    """Keeps one process to what was agreed; and ends it when the process that started it is gone.

    Args:
        load: opens the bundle of a name.
        parent: id of the process that started this one.
    """

    def __init__(
        self, path: Path, live: Live, load: Callable[[str], Pipeline], parent: int, every_s: float = EVERY_S
    ) -> None:
        self._path, self._live, self._load, self._every_s = path, live, load, every_s
        self._parent = parent
        self._refused: Agreed | None = None
        self._again = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()

    def look(self) -> None:
        """Follow, where something else is agreed on than answers here. Raises OSError, and ValueError for a file that
        says nothing."""
        agreed = said(self._path)
        if agreed is None:
            self._say_first()
            return
        if self._is_settled(agreed):
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
            self._refused = agreed
            self._again = math.inf if isinstance(error, Otherwise) else time.monotonic() + AGAIN_S
            is_known = isinstance(error, (ValueError, OSError))
            log.error("cannot follow to %s: %s", _words(agreed), error, exc_info=not is_known)

    def _say_first(self) -> None:
        """Let all know what answers here, unless something was said meanwhile, or it is what the others left."""
        if self._refused is None:
            with suppress(Changing), self._live.changing():
                here = Agreed(self._live.name, identity_of(self._live.current))
                write_first(self._path, _text(here).encode())

    def _is_settled(self, agreed: Agreed) -> bool:
        """Whether it answers, or could not be followed to a moment ago."""
        if agreed.identity == identity_of(self._live.current):
            return True
        return agreed == self._refused and time.monotonic() < self._again

    def _follow(self, agreed: Agreed) -> None:
        previous = self._live.previous
        if previous is not None and identity_of(previous) == agreed.identity:
            self._live.roll_back()
        else:
            self._live.reload(lambda: self._agreed_on(agreed), agreed.bundle)
        self._refused = None
        log.info("followed to %s", _words(agreed))

    def _agreed_on(self, agreed: Agreed) -> Pipeline:
        pipeline = self._load(agreed.bundle)
        if (found := identity_of(pipeline)) != agreed.identity:
            pipeline.close()
            by_now = _words(Agreed(agreed.bundle, found))
            remedy = f"`scenerank live reload {agreed.bundle}` has all answer with that"
            raise Otherwise(f"by now the workspace holds {by_now}; {remedy}")
        return pipeline

    def _run(self) -> None:
        is_well = True
        while not self._ending.wait(self._every_s):
            if os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                self.look()
                is_well = True
            except Exception:  # whatever it is: without this thread the process would neither follow nor end
                if is_well:
                    log.exception("cannot read, or say, what is agreed on")
                is_well = False


def _words(agreed: Agreed) -> str:
    what = agreed.identity
    proven = "" if what.proven else ", unproven"
    return f"{agreed.bundle}, version {what.bundle}{proven}, index {what.index or 'none'}, key of tokens {what.key[:8]}"
