"""Which pipeline answers: changed while requests run, and back again at once.

A request holds one pipeline from its beginning to its end, so no answer is made of two. A pipeline that is replaced by
another one stays loaded as the one to roll back to; the one before that is closed when its last request has been
answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.online import ServiceMismatch
from serving.pipeline import Pipeline


class Changing(RuntimeError):
    """Another change is under way."""


class NothingBefore(RuntimeError):
    """There is no pipeline to roll back to."""


@dataclass(frozen=True)
class Identity:
    """What tells pipelines apart: two of one identity answer alike, and take each other's tokens.

    Attributes:
        bundle, index: their versions; empty without an index.
        key: fingerprint of the key that signs tokens, and of those whose tokens are taken.
        proven: what answers say of the bundle's certificate.
    """

    bundle: str
    index: str
    key: str
    proven: bool


def identity_of(pipeline: Pipeline) -> Identity:
    return Identity(
        bundle=pipeline.bundle.manifest.version,
        index=pipeline.index_version,
        key=pipeline.signer.fingerprint,
        proven=pipeline.proven,
    )


class _Held:
    """A pipeline and how many requests hold it."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.since_us = time.time_ns() // 1000
        self.users = 0
        self.is_retired = False


class Live:
    """The pipeline that answers and the one before it; safe to call from threads.

    Args:
        told: is called with whatever pipeline begins to answer.
        name: of the bundle, in its workspace.
    """

    def __init__(
        self, pipeline: Pipeline, told: Callable[[Pipeline], None] = lambda pipeline: None, name: str = ""
    ) -> None:
        self._told = told
        told(pipeline)
        self._current = _Held(pipeline, name)
        self._previous: _Held | None = None
        self._lock = threading.Lock()
        self._changing = threading.Lock()

    @property
    def current(self) -> Pipeline:
        return self._current.pipeline

    @property
    def name(self) -> str:
        """Of the current one's bundle."""
        return self._current.name

    @property
    def since_us(self) -> int:
        """When the current one began to answer, microseconds UTC."""
        return self._current.since_us

    @property
    def previous(self) -> Pipeline | None:
        return None if self._previous is None else self._previous.pipeline

    @contextmanager
    def answering(self) -> Iterator[Pipeline]:
        """The current pipeline, which stays usable for the block whatever is changed meanwhile."""
        with self._lock:
            held = self._current
            held.users += 1
        try:
            yield held.pipeline
        finally:
            with self._lock:
                held.users -= 1
                is_last = held.is_retired and not held.users
            if is_last:
                held.pipeline.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One change at a time: what is read, changed and said in the block belongs together. Raises Changing."""
        if not self._changing.acquire(blocking=False):
            raise Changing("another change of what is served is under way")
        try:
            yield
        finally:
            self._changing.release()

    def opened(self, load: Callable[[], Pipeline]) -> Pipeline:
        """A pipeline that may stand in the current one's place, started.

        Raises what `load` raises, and ServiceMismatch for one of another data set.
        """
        pipeline = load()
        ours, theirs = self.current.bundle.schema.dataset, pipeline.bundle.schema.dataset
        if ours != theirs:
            pipeline.close()
            raise ServiceMismatch(f"the bundle ranks places of {theirs!r}, this server answers for {ours!r}")
        pipeline.start()
        return pipeline

    def reload(self, load: Callable[[], Pipeline], name: str = "", announce: Callable[[], None] = lambda: None) -> None:
        """Within `changing`: have a pipeline answer once it is loaded, of the bundle of this name.

        One that is no other than the current one, loaded again, leaves the one to roll back to.

        Args:
            announce: called once it answers; where that raises, all is as before.
        Raises what `opened` and `announce` raise; what answered before goes on.
        """
        begun = _Held(self.opened(load), name)
        is_again = identity_of(begun.pipeline) == identity_of(self.current)
        kept, gone = (self._previous, self._current) if is_again else (self._current, self._previous)
        try:
            self._change(begun, kept, announce)
        except BaseException:
            self._retire(begun)
            raise
        self._retire(gone)

    def roll_back(self, announce: Callable[[], None] = lambda: None) -> None:
        """Within `changing`: have the pipeline of before the last change answer again.

        Raises NothingBefore, and what `announce` raises, after which all is as before."""
        if self._previous is None:
            raise NothingBefore("this server has loaded nothing else since it started")
        self._previous.since_us = time.time_ns() // 1000
        self._change(self._previous, self._current, announce)

    def close(self) -> bool:
        """Close all that is loaded; whether no read hangs."""
        loaded = [held.pipeline for held in (self._current, self._previous) if held is not None]
        return all([pipeline.close() for pipeline in loaded])

    def _change(self, current: _Held, previous: _Held | None, announce: Callable[[], None]) -> None:
        before = self._current, self._previous
        self._set(current, previous)
        try:
            announce()
        except BaseException:
            self._set(*before)
            raise

    def _set(self, current: _Held, previous: _Held | None) -> None:
        with self._lock:
            self._current, self._previous = current, previous
            self._told(current.pipeline)

    def _retire(self, held: _Held | None) -> None:
        if held is None:
            return
        with self._lock:
            held.is_retired = True
            is_idle = not held.users
        if is_idle:
            held.pipeline.close()
