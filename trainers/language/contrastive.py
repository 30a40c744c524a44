"""Contrastive losses on vectors: pure functions that know no language model.

A pair is drawn together and away from what other pairs of the batch chose (InfoNCE; van den Oord et al. 2018) and from
what its anchor was shown and left. Letters: B pairs of a batch, P pairs whose sides are the candidates (the batch, or
those of all processes), E exposed candidates a pair, T distinct texts, K texts of one side, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainers.language.clicks import NONE
from trainers.language.pairs import Kind
from trainers.losses import info_nce

Piece = TypeVar("Piece")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What "symmetric and asymmetric scoring" means: the paper uses both words and gives no formula.

    Args:
        reading: "projectors": a symmetric kind of pair compares two sides that went through the same projector, an
            asymmetric one gives each side its own, and the softmax runs from anchors to positives. "directions": all
            sides go through one projector; a symmetric kind averages the softmax over positives and the one over
            anchors, an asymmetric one has the first only.
        symmetric: the kinds of pairs that are symmetric; by default those whose sides are of one sort.
    """

    reading: Literal["projectors", "directions"] = "projectors"
    symmetric: tuple[Kind, ...] = ("user_user", "poi_poi")

    def projectors(self, kind: Kind) -> tuple[str, str]:
        """The names of the projectors of the anchors and of the positives."""
        if self.reading == "directions":
            return "shared", "shared"
        user, poi = ("shared", "shared") if "user_poi" in self.symmetric else ("user", "poi")
        if kind == "user_poi":
            return user, poi
        own = user if kind == "user_user" else poi
        return own, own if kind in self.symmetric else f"{own}_positive"

    def both_directions(self, kind: Kind) -> bool:
        return self.reading == "directions" and kind in self.symmetric


@dataclass(frozen=True, kw_only=True)
class PairVectors:
    """B pairs as raw vectors, with the keys that say which of them are no negatives of each other (`pairs.Pairs`)."""

    anchor_BD: Tensor
    positive_BD: Tensor
    anchor_B: Tensor
    positive_B: Tensor
    group_B: Tensor

    def turned(self) -> PairVectors:
        """The same pairs with anchors and positives exchanged."""
        return PairVectors(
            anchor_BD=self.positive_BD,
            positive_BD=self.anchor_BD,
            anchor_B=self.positive_B,
            positive_B=self.anchor_B,
            group_B=self.group_B,
        )


def in_batch_loss(pairs: PairVectors, pool: PairVectors | None = None, *, first: int = 0, temperature: float) -> Tensor:
    """InfoNCE with the positives of other pairs as negatives; those known to belong together are left out.

    Args:
        pool: the pairs whose positives are the candidates, where they are more than `pairs`.
        first: where `pairs` begin in the pool.
    """
    pool = pool or pairs
    return info_nce(
        pairs.anchor_BD,
        pool.positive_BD,
        temperature=temperature,
        first=first,
        excluded_BP=belong_together(pairs, pool),
    )


def belong_together(pairs: PairVectors, pool: PairVectors) -> Tensor:
    """Which positives of the pool are no negatives of which anchor: bool (B, P).

    The same positive; another positive of the same anchor or of the same group; the anchor itself.
    """
    return (
        (pairs.positive_B[:, None] == pool.positive_B)
        | (pairs.anchor_B[:, None] == pool.anchor_B)
        | (pairs.group_B[:, None] == pool.group_B)
        | (pairs.anchor_B[:, None] == pool.positive_B)
    )


def exposed_loss(
    anchor_BD: Tensor, positive_BD: Tensor, exposed_BED: Tensor, shown_BE: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE of each positive against what its own anchor was shown and did not choose.

    Args:
        shown_BE: False where a pair has no further exposed candidate.
    Returns:
        A scalar, the mean over all pairs; one that was shown nothing else counts as 0.
    """
    positive_B = (functional.normalize(anchor_BD, dim=1) * functional.normalize(positive_BD, dim=1)).sum(1)
    exposed_BE = torch.einsum(
        "bd,bed->be", functional.normalize(anchor_BD, dim=1), functional.normalize(exposed_BED, dim=2)
    )
    score = torch.cat([positive_B[:, None], exposed_BE.masked_fill(~shown_BE, -torch.inf)], dim=1) / temperature
    return functional.cross_entropy(score, torch.zeros(len(score), dtype=torch.long, device=score.device))


def total_loss(parts: Mapping[Kind, Tensor], weights: Mapping[Kind, float]) -> Tensor:
    """L_2 = w_uu L_uu + w_pp L_pp + w_up L_up."""
    return torch.stack([weights[kind] * loss for kind, loss in parts.items()]).sum()


def side_vectors(text_TD: Tensor, side_BK: Tensor) -> Tensor:
    """The sum of the vectors of each side's texts: (B, D), or (B, E, D) for sides (B, E, K).

    Args:
        side_BK: positions in `text_TD`, `NONE` where a side has no further text.
    """
    there = (side_BK != NONE).unsqueeze(-1)
    return (text_TD[side_BK.clamp(min=0)] * there).sum(-2)


def encode_pieces(encode: Callable[[Piece], Tensor], pieces: Sequence[Piece], *, cached: bool) -> list[Tensor]:
    """The vectors of each piece of a large batch.

    Args:
        cached: keep no activations. The loss is differentiated with respect to the vectors first; each piece is then
            encoded again and its part of the gradient goes on into the encoder (GradCache; Gao et al. 2021): the same
            value and gradient with the memory of one piece, for one more forward pass.
    """
    if not cached:
        return [encode(piece) for piece in pieces]
    vectors: list[Tensor] = [checkpoint(encode, piece, use_reentrant=False) for piece in pieces]
    return vectors
