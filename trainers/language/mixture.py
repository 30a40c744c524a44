"""What a step of stage 1 reads: documents of several kinds in fixed shares, and the loss of what they foresee.

The documents of a step are a pure function of the seed and the step, whoever reads them: several processes share what
one would read alone, and a run that goes on after a kill reads what it would have read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.language.corpus import Corpus, place_document
from trainers.language.likelihood import Example, Padded, encode, pad
from trainers.loop import TrainingError
from trainers.losses import Losses

MAX_TOKENS = {"cpu": 2048, "cuda": 16_384}
KINDS = ("place", "conditional", "history", "general")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What a step reads. Shares are of its documents.

    Args:
        general: share of general text.
        histories: share of users' histories.
        conditional: share of the conditional objective in the documents of POIs.
        documents: read in a step, by all processes together.
        max_length: tokens of a document; a longer one is cut.
        max_tokens: run through the model at once, padding included, by one process; None for what suits its device.
        seed: draws the documents and their wording.
    """

    general: float = 0.25
    histories: float = 0.125
    conditional: float = 0.5
    documents: int = 8
    max_length: int = 256
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.general, self.histories, self.conditional)
        if not all(0 <= share <= 1 for share in shares) or self.general + self.histories > 1:
            raise TrainingError(f"general, histories and conditional are shares in 0 .. 1, got {shares}")
        if min(self.documents, self.max_tokens or 1) < 1 or self.max_length < 8:
            raise TrainingError(f"documents and max_tokens must be positive, max_length at least 8, got {self}")

    def composition(self) -> dict[str, int]:
        """How many documents of each kind a step reads, at least one where the share is not zero.

        >>> MixtureConfig(documents=16).composition()
        {'place': 5, 'conditional': 5, 'history': 2, 'general': 4}
        >>> MixtureConfig(documents=10, general=0.04, histories=0.0, conditional=1.0).composition()
        {'conditional': 9, 'general': 1}
        """
        general, histories = (_count(share, self.documents) for share in (self.general, self.histories))
        left = self.documents - general - histories
        conditional = _count(self.conditional, left)
        counts = dict(zip(KINDS, (left - conditional, conditional, histories, general), strict=True))
        if min(counts.values()) < 0:
            raise TrainingError(f"{self.documents} documents a step are too few for so many kinds; read at least 4")
        return {kind: count for kind, count in counts.items() if count}


@dataclass(frozen=True)
class Reading:
    """One process's share of the documents of a step.

    Attributes:
        parts: that are run through the model one after the other: the examples and the kind of each, int64 (B,).
        targets: how many tokens all processes are to foresee, of each kind.
        processes: how many there are.
    """

    parts: tuple[tuple[Padded, Tensor], ...]
    targets: Mapping[str, int]
    processes: int


class Mixture:
    """The task: the documents of each step, drawn without repetition until all of a kind were read."""

    def __init__(self, corpus: Corpus, tokenizer: Any, config: MixtureConfig) -> None:
        self.corpus, self.config, self._tokenizer = corpus, config, tokenizer
        self._max_tokens = config.max_tokens or MAX_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
        self._pools: dict[str, Sequence[Any]] = {
            "place": corpus.places,
            "conditional": [facts for facts in corpus.places if set(facts) & set(corpus.config.predicted)],
            "history": corpus.histories,
            "general": corpus.general,
        }
        empty = [kind for kind in config.composition() if not self._pools[kind]]
        if empty:
            raise TrainingError(f"the corpus has no documents of kind {empty}; set their share to zero")

    def batch(self, step: int, rank: int, world: int) -> Reading:
        """Every process takes every `world`-th document by length, in as many parts as all others."""
        if self.config.documents < world:
            raise TrainingError(f"{self.config.documents} documents a step for {world} processes; read more")
        chosen = [
            (kind, self._example(kind, step, at)) for kind, n in self.config.composition().items() for at in range(n)
        ]
        chosen.sort(key=lambda pair: len(pair[1]))
        mine = chosen[rank::world]
        parts = -(-len(chosen[-1][1]) * len(chosen) // (world * self._max_tokens))
        cuts = np.array_split(np.arange(len(mine)), min(parts, len(chosen) // world))
        return Reading(
            parts=tuple(
                (pad([mine[i][1] for i in at]), torch.tensor([KINDS.index(mine[i][0]) for i in at])) for at in cuts
            ),
            targets={kind: sum(sum(e.target) for k, e in chosen if k == kind) for kind in self.config.composition()},
            processes=world,
        )

    def losses(self, module: nn.Module, batch: Reading) -> Losses:
        """The mean surprise over all targets, and that of each kind."""
        sums = torch.zeros(len(KINDS))
        for padded, kind_B in batch.parts:
            surprise_N = module(padded)
            rows_N = padded.target_BT[:, 1:].nonzero()[:, 0]
            kind_N = kind_B[rows_N].to(surprise_N.device)
            sums = sums.to(surprise_N.device).index_add(0, kind_N, surprise_N)
        total = sums.sum() / max(sum(batch.targets.values()), 1) * batch.processes
        parts = {k: sums[KINDS.index(k)].detach() / max(n, 1) * batch.processes for k, n in batch.targets.items()}
        return Losses(total, parts)

    def tokens(self, batch: Reading) -> int:
        """Of this process, without padding."""
        return sum(int(padded.real_BT.sum()) for padded, _ in batch.parts)

    def _example(self, kind: str, step: int, at: int) -> Example:
        """The document that stands at a place of a step."""
        pool, count = self._pools[kind], self.config.composition()[kind]
        number = step * count + at
        order = _order(len(pool), self.config.seed, KINDS.index(kind), number // len(pool))
        item = pool[order[number % len(pool)]]
        if kind == "place":
            chance = np.random.default_rng((self.config.seed, number))
            item = place_document(item, self.corpus.families[chance.integers(len(self.corpus.families))])
        elif kind == "conditional":
            item = self.corpus.conditional(item)
        return encode(item, self._tokenizer, self.config.max_length)


@lru_cache(maxsize=2 * len(KINDS))
def _order(count: int, seed: int, kind: int, time: int) -> tuple[int, ...]:
    """The order in which documents are read the nth time."""
    order: list[int] = np.random.default_rng((seed, kind, time)).permutation(count).tolist()
    return tuple(order)


def _count(share: float, documents: int) -> int:
    return max(round(share * documents), 1) if share else 0
