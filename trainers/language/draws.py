"""What one step of contrastive tuning learns from: pairs drawn at random, their distinct texts, and the loss of them.

The draw of a step is a pure function of the seed, the step and the number of processes; each process takes its rows of
it. In-batch negatives are those of all processes: their positives are gathered, so that two processes with half of the
pairs each learn what one process with all of them learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from trainers.language.clicks import NONE, PairError
from trainers.language.contrastive import PairVectors, Scoring, exposed_loss, in_batch_loss, side_vectors, total_loss
from trainers.language.pairs import KINDS, Kind, Mined, Pairs
from trainers.language.processes import Processes
from trainers.losses import Losses


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How much of each kind a step sees, and how its losses are added up.

    Args:
        pairs: of each kind in a step, of each process.
        weights: of the kinds' losses; a kind with weight 0 is not drawn.
        exposed: POIs that were shown and left, drawn for each user-POI pair; 0 leaves that part out.
        in_batch_weight, exposed_weight: of the two parts of the user-POI loss.
        temperature: divides the cosines.
        dropout: share of the texts of a side of several that is left out at random, never all of them: single sentences
            stay something that the model has read on their own.
    """

    pairs: Mapping[Kind, int] = field(default_factory=lambda: {"user_user": 12, "poi_poi": 12, "user_poi": 40})
    weights: Mapping[Kind, float] = field(default_factory=lambda: {"user_user": 0.3, "poi_poi": 0.3, "user_poi": 1.0})
    exposed: int = 4
    in_batch_weight: float = 1.0
    exposed_weight: float = 1.0
    temperature: float = 0.1
    dropout: float = 0.25

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.dropout < 1:
            raise PairError(f"the temperature must be positive and dropout in 0 .. 1, 1 excluded, got {self}")
        if self.exposed < 0 or min([*self.weights.values(), self.in_batch_weight, self.exposed_weight]) < 0:
            raise PairError(f"weights and numbers of negatives must not be negative, got {self}")

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that count."""
        return tuple(kind for kind in KINDS if self.weights.get(kind, 0) > 0 and self.pairs.get(kind, 0) > 0)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Pairs of one kind, with positions in `Step.texts` for texts (`NONE`: no further one)."""

    anchor_BK: np.ndarray
    positive_BK: np.ndarray
    exposed_BE: np.ndarray
    anchor_B: np.ndarray
    positive_B: np.ndarray
    group_B: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one process reads in one step: numbers of distinct texts, and the pairs that are made of them."""

    texts: np.ndarray
    draws: Mapping[Kind, Draw]


class ContrastTask:
    """Contrastive tuning as a task of `tuning.tune`; its module is a `Reader`.

    Args:
        prompts: the token ids of each of the mined texts.
        groups: int64, which mean each of them is centred by (`heads.Groups`).
    """

    def __init__(
        self,
        mined: Mined,
        prompts: Sequence[Sequence[int]],
        groups: np.ndarray,
        config: DrawConfig,
        scoring: Scoring,
        *,
        seed: int = 0,
    ) -> None:
        if missing := [kind for kind in config.kinds() if kind not in mined.pairs]:
            raise PairError(f"the log has no pairs of kind {missing}; set their weight to 0")
        if not config.kinds():
            raise PairError("no kind of pair has a positive weight and number; there is nothing to learn")
        self._pairs, self._prompts, self._groups = mined.pairs, prompts, groups
        self._config, self._scoring, self._seed = config, scoring, seed
        self._processes = Processes.join()

    def batch(self, step: int, rank: int, world: int) -> Step:
        rng = np.random.default_rng((self._seed, step))
        drawn = {kind: self._draw(rng, kind, rank, world) for kind in self._config.kinds()}
        sides = [side.ravel() for d in drawn.values() for side in (d.anchor_BK, d.positive_BK, d.exposed_BE)]
        texts = np.unique(np.concatenate(sides))
        texts = texts[texts != NONE]
        return Step(texts=texts, draws={kind: _among(texts, draw) for kind, draw in drawn.items()})

    def losses(self, module: nn.Module, batch: Step) -> Losses:
        groups = torch.from_numpy(self._groups[batch.texts])
        vectors = module([self._prompts[text] for text in batch.texts], groups)
        with torch.autocast(self._processes.device.type, enabled=False):
            kinds = {kind: self._loss(kind, draw, vectors) for kind, draw in batch.draws.items()}
            total = total_loss({kind: loss for kind, (loss, _) in kinds.items()}, self._config.weights)
        return Losses(total, {name: value.detach() for _, parts in kinds.values() for name, value in parts.items()})

    def tokens(self, batch: Step) -> int:
        return sum(len(self._prompts[text]) for text in batch.texts)

    def _draw(self, rng: np.random.Generator, kind: Kind, rank: int, world: int) -> Draw:
        """This process's rows of a draw that all processes make."""
        pairs, most = self._pairs[kind], self._config.pairs[kind]
        possible = int(np.count_nonzero(pairs.probability_N))
        rows = rng.choice(len(pairs), most * world, replace=possible < most * world, p=pairs.probability_N)
        anchors, positives = (self._drop(rng, side[rows]) for side in (pairs.anchor_NK, pairs.positive_NK))
        exposed = self._exposed(rng, pairs, rows)
        mine = slice(rank * most, (rank + 1) * most)
        return Draw(
            anchor_BK=anchors[mine],
            positive_BK=positives[mine],
            exposed_BE=exposed[mine],
            anchor_B=pairs.anchor_N[rows][mine],
            positive_B=pairs.positive_N[rows][mine],
            group_B=pairs.group_N[rows][mine],
        )

    def _drop(self, rng: np.random.Generator, side_BK: np.ndarray) -> np.ndarray:
        """Some of the texts of each side, at least one."""
        lot_BK = np.where(side_BK != NONE, rng.random(side_BK.shape), np.inf)
        # The text with the lowest lot of a side always stays.
        stays_BK = (rng.random(side_BK.shape) >= self._config.dropout) | (lot_BK == lot_BK.min(1, keepdims=True))
        return np.where(stays_BK, side_BK, NONE)

    def _exposed(self, rng: np.random.Generator, pairs: Pairs, rows: np.ndarray) -> np.ndarray:
        """Some of what was shown and left: (B, E)."""
        shown_BE = pairs.exposed_NE[rows]
        lot_BE = np.where(shown_BE != NONE, rng.random(shown_BE.shape), np.inf)
        chosen_BE = np.argsort(lot_BE, axis=1)[:, : self._config.exposed]
        return np.take_along_axis(shown_BE, chosen_BE, axis=1)

    def _loss(self, kind: Kind, draw: Draw, vectors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one kind, and its parts by name."""
        config = self._config
        to_anchor, to_positive = (vectors[name] for name in self._scoring.projectors(kind))
        there = to_anchor.device
        anchor_BK, positive_BK, exposed_BE, *keys = (
            torch.from_numpy(getattr(draw, name).astype(np.int64)).to(there)
            for name in ("anchor_BK", "positive_BK", "exposed_BE", "anchor_B", "positive_B", "group_B")
        )
        pairs = PairVectors(
            anchor_BD=side_vectors(to_anchor, anchor_BK),
            positive_BD=side_vectors(to_positive, positive_BK),
            anchor_B=keys[0],
            positive_B=keys[1],
            group_B=keys[2],
        )
        loss = self._in_batch(pairs, both_directions=self._scoring.both_directions(kind))
        if kind != "user_poi":
            return loss, {kind: loss}
        parts = {f"{kind}_in_batch": loss}
        loss = config.in_batch_weight * loss
        if exposed_BE.shape[1] and config.exposed_weight:
            exposed_BED = side_vectors(to_positive, exposed_BE[..., None])
            shown = exposed_loss(
                pairs.anchor_BD, pairs.positive_BD, exposed_BED, exposed_BE != NONE, temperature=config.temperature
            )
            parts[f"{kind}_exposed"] = shown
            loss = loss + config.exposed_weight * shown
        return loss, parts

    def _in_batch(self, pairs: PairVectors, *, both_directions: bool) -> Tensor:
        """Over the positives of all processes, and in the other direction over their anchors."""
        first = self._processes.rank * len(pairs.group_B)
        pool = PairVectors(**{name: self._processes.gather(value) for name, value in vars(pairs).items()})
        loss = in_batch_loss(pairs, pool, first=first, temperature=self._config.temperature)
        if both_directions:
            back = in_batch_loss(pairs.turned(), pool.turned(), first=first, temperature=self._config.temperature)
            loss = (loss + back) / 2
        return loss


def _among(texts: np.ndarray, draw: Draw) -> Draw:
    """A draw with positions in `texts` in the place of text numbers."""

    def at(numbers: np.ndarray) -> np.ndarray:
        return np.where(numbers == NONE, NONE, np.searchsorted(texts, numbers))

    return Draw(
        anchor_BK=at(draw.anchor_BK),
        positive_BK=at(draw.positive_BK),
        exposed_BE=at(draw.exposed_BE),
        anchor_B=draw.anchor_B,
        positive_B=draw.positive_B,
        group_B=draw.group_B,
    )
