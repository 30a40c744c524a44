"""Values and places without a vector: put on a list for the next embedding run, and right after it without a restart.

Until then they have the learned vector that stands for "missing". One thread looks at the knowledge files that the
bundle's vectors came from: where one has grown, its new rows are taken up, if all the known ones are as they were.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from feature_repo import columns
from feature_repo.files import state_of
from serving.features import ContextReading, Reading
from serving.online import ValueStatus
from serving.request import RequestContext
from trainers.bundle import Bundle
from trainers.knowledge import SCENE_SPACE, VectorMatrix, load_matrix
from trainers.wanted import WantedList

log = logging.getLogger(__name__)
EVERY_S = 5.0  # what a look at unchanged files costs is nothing


class Newcomers:
    """The vectors of one bundle's ranker as its knowledge files grow; safe to call from threads.

    Args:
        files: the knowledge file of each vector space that the bundle reads.
    """

    def __init__(self, bundle: Bundle, files: Mapping[str, Path], wanted: WantedList, every_s: float = EVERY_S) -> None:
        self._bundle, self._files, self._wanted, self._every_s = bundle, dict(files), wanted, every_s
        self._states: dict[str, object] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look again and again from now on."""
        self._thread = threading.Thread(target=self._run, name="newcomers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the looking; what is wanted is written."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._write()

    def answered(self, asked: RequestContext, context: ContextReading, reading: Reading) -> None:
        """Note who has no vector among the scene's values, the user, the scenario and the places of one answer."""
        for space in self._files:
            if space == SCENE_SPACE:
                values = [a for a in context.scene if a.value and not a.has_vector]
                keys = [columns.scene_value(a.feature, a.value or "") for a in values]
            else:
                keys = _without(space, context, reading)
            if keys:
                self._wanted.add(space, keys, context.time_us)

    def look(self) -> None:
        """Write what is wanted, and take up what has come."""
        self._write()
        for space, path in self._files.items():
            if not path.is_file() or (state := state_of([path])) == self._states.get(space):
                continue
            vectors = load_matrix(path)
            self._states[space] = state  # a file that could not be read is read again
            if vectors.version == self._bundle.manifest.knowledge_versions[space]:  # else it is about to be moved
                self._take(space, vectors)

    def _take(self, space: str, vectors: VectorMatrix) -> None:
        ranker, known = self._bundle.ranker, self._bundle.matrices[space].matrix
        before, now = ranker.vectors_known(space), len(vectors.matrix)
        if now < before or not np.array_equal(vectors.matrix[: len(known)], known):
            log.error("%s: rows that the bundle knows have changed; texts embedded since have no vector", space)
            return
        self._wanted.arrived(space, vectors.keys)
        if now > before:
            ranker.extend_vectors(space, torch.from_numpy(vectors.matrix))
            log.info("%s: %d new vectors taken up", space, now - before)

    def _write(self) -> None:
        try:
            self._wanted.write()
        except OSError as error:
            log.warning("what has no vector cannot be written down: %s", error.strerror)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # a file that is being replaced, or is none: what is known stays in use
                log.warning("knowledge cannot be looked at again: %s", type(error).__name__)
            if self._ending.wait(self._every_s):
                return


def _without(space: str, context: ContextReading, reading: Reading) -> list[str]:
    """The keys of a space that are known, and have no row: strangers have nothing that could be embedded."""
    key, rows = columns.SPACES[space], reading.rows[columns.knowledge(space, columns.ROW)]
    if not rows.null_count:
        return []
    keys = reading.rows[key]
    if key == columns.USER_ID and context.user_status is not ValueStatus.PRESENT:
        return []
    missing = rows.is_null()
    if key == columns.POI_ID:
        missing = pc.and_(missing, pa.array([s is ValueStatus.PRESENT for s in reading.poi_statuses]))
    found: list[str] = keys.filter(missing).to_pylist()
    return found
