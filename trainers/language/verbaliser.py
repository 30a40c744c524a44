"""Words for a vector: which words of a fixed list the model's head finds apt after a prompt, more than after others.

A word's score is how much likelier the head makes it after this prompt than on average after the prompts of the same
level and snapshot (the prior, without which the same few words come first for everybody). Scores are differences of
logits, the mean over a word's tokens; they order the words of one prompt and mean little beside those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.files import write_whole
from feature_repo.workspace import Workspace
from trainers.language.texts import TextError

TOP_WORDS = 5
HEADER = (
    "# Words that may describe a user or a scenario, one a line. Edit freely; delete the file for the usual ones.\n"
)


@dataclass(frozen=True)
class Verbaliser:
    """W words and the directions of states after which a model would say them."""

    words: tuple[str, ...]
    directions_WE: np.ndarray

    def scores(self, states_nE: np.ndarray) -> np.ndarray:
        """float32 (n, W): each prompt's scores minus their mean over all n."""
        scores_nW: np.ndarray = (states_nE - states_nE.mean(axis=0)) @ self.directions_WE.T
        return scores_nW

    def say(self, scores_nW: np.ndarray) -> list[str]:
        """The best words of each prompt with their scores, such as `pub 1.20, cafe 0.40`; nothing for a single prompt,
        which has no others to be compared with."""
        if len(scores_nW) < 2:
            return [""] * len(scores_nW)
        best = np.argsort(-scores_nW, axis=1, kind="stable")[:, :TOP_WORDS]
        return [
            ", ".join(f"{self.words[w]} {scores[w]:.2f}" for w in row)
            for row, scores in zip(best, scores_nW, strict=True)
        ]

    def best_of(self, scores_nW: np.ndarray, among: Sequence[str]) -> list[str]:
        """The best word of each prompt among some of the words. Raises KeyError for one that is not in the list."""
        at = {word: number for number, word in enumerate(self.words)}
        columns_of = [at[word] for word in among]
        return [among[best] for best in scores_nW[:, columns_of].argmax(axis=1)]


def words_of(workspace: Workspace, path: Path | None) -> tuple[str, ...]:
    """The words of a file; without one, those of the workspace's own, written from its POIs where it is not there.

    Raises TextError for a file that is not there or holds fewer than two words.
    """
    if path is None:
        path = _own(workspace)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _usual_file(workspace))
    if not path.is_file():
        raise TextError(f"{path}: no such file of words; write one word a line")
    lines = (line.strip() for line in path.read_text().splitlines())
    words = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if len(words) < 2:
        raise TextError(f"{path}: at least two words expected, one a line, found {list(words)}")
    return words


def forget_usual_words(workspace: Workspace) -> None:
    """Before other POIs take the place of the workspace's: remove its own list, unless somebody edited it."""
    path = _own(workspace)
    if path.is_file() and workspace.source("pois").is_file() and path.read_text() == _usual_file(workspace):
        path.unlink()


def _own(workspace: Workspace) -> Path:
    return workspace.knowledge / "words.txt"


def _usual_file(workspace: Workspace) -> str:
    return HEADER + "".join(f"{word}\n" for word in usual_words(workspace))


def usual_words(workspace: Workspace) -> list[str]:
    """The categories of the workspace's POIs, then their finest kinds, each in alphabetical order."""
    pois = pq.read_table(workspace.source("pois"), columns=[columns.CATEGORY, columns.SPECIALTY])
    categories = sorted(set(pois[columns.CATEGORY].to_pylist()))
    return [*categories, *sorted(set(pois[columns.SPECIALTY].to_pylist()) - {None, *categories})]
