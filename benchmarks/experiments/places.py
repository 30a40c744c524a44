"""Where experiments keep things: what can be made again below `.scenerank`, results below `benchmarks/results`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of one set of experiments; nothing is created by naming them.

    Args:
        scratch: worlds, vectors, language models and test scores; large, and made again where absent.
        results: cells, tables and plots; small, and kept.
    """

    scratch: Path = REPOSITORY / ".scenerank" / "experiments"
    results: Path = REPOSITORY / "benchmarks" / "results" / "experiments"

    @staticmethod
    def quick() -> Places:
        """A quick run is a rehearsal: it leaves no results where real ones are kept."""
        scratch = Places().scratch
        return Places(scratch=scratch, results=scratch / "quick")

    @property
    def cells(self) -> Path:
        return self.results / "cells"

    @property
    def scores(self) -> Path:
        return self.scratch / "scores"

    @property
    def worlds(self) -> Path:
        return self.scratch / "worlds"

    @property
    def vectors(self) -> Path:
        return self.scratch / "vectors"

    @property
    def language(self) -> Path:
        return self.scratch / "language"
