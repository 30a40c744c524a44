"""Where one project's files live: source tables, registry, online store, knowledge, training sets, bundles, index.

A workspace is one folder for one dataset. The environment variable `SCENERANK_WORKSPACE` names it; the default is
`.scenerank/city` beside this package, so that plain `feast -c feature_repo apply` works in a fresh clone.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "SCENERANK_WORKSPACE"
REPOSITORY = Path(__file__).resolve().parent
DEFAULT = REPOSITORY.parent / ".scenerank" / "city"


@dataclass(frozen=True)
class Workspace:
    """Paths below one root folder; nothing is created by naming it."""

    root: Path

    @property
    def schema(self) -> Path:
        return self.root / "sources" / "schema.json"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def knowledge(self) -> Path:
        return self.root / "knowledge"

    @property
    def beside(self) -> Path:
        """Versions of knowledge that are served beside those in use: a file each, called as its view."""
        return self.knowledge / "beside"

    @property
    def language(self) -> Path:
        """Run folders of language models that were tuned here, one a stage."""
        return self.root / "language"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def served(self) -> Path:
        """What a sample of a server's answers was made of."""
        return self.root / "served"

    @property
    def stream(self) -> Path:
        """The record of clicks that came after the log."""
        return self.root / "stream.db"

    @property
    def stream_lock(self) -> Path:
        """Held by all that stream clicks into the online store (`files.locked`), and by whatever empties it."""
        return self.root / "stream.lock"

    def source_lock(self, source: str) -> Path:
        """Held by the one process of this machine that reads this source of clicks."""
        return self.root / f"stream-{hashlib.sha256(source.encode()).hexdigest()[:16]}.lock"

    @property
    def feedback(self) -> Path:
        """What became of answers, where no other database is named."""
        return self.root / "feedback.db"

    @property
    def attribution_key(self) -> Path:
        """Signs the tokens of answers; servers of other machines need a copy. Others may lie beside it."""
        return self.root / "attribution.key"

    @property
    def feature_store_yaml(self) -> Path:
        return self.root / "feature_store.yaml"

    def source(self, table: str) -> Path:
        """The Parquet file of one source table."""
        return self.sources / f"{table}.parquet"


def active() -> Workspace:
    """The workspace that this process works in."""
    return Workspace(Path(os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT)).resolve())


def activate(root: Path) -> Workspace:
    """Make `root` this process's workspace. Call before importing any Feast definition: they read it on import."""
    os.environ[ENVIRONMENT_VARIABLE] = str(root.resolve())
    return active()
