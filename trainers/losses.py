"""Losses: pure functions on logits and vectors; they own the sigmoid, so that nothing saturates.

Letters: B rows, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainers.batch import Batch
from trainers.models.ranker import Scores

NORMALISER = 0.01  # weight of (log Z)^2 in `list_softmax`


@dataclass(frozen=True)
class Losses:
    """The number to minimise, a scalar with gradient, and its parts for the record."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the parts of a ranker's loss.

    Args:
        alignment: weight of guidance; it counts only for rankers that tap a collaborative vector.
        temperature: divides the cosines of InfoNCE.
        both_directions: average scene -> collaborative and collaborative -> scene.
        aligned_rows: which rows are pairs. "clicked": a scene is drawn to what was wanted in it; an impression without
            a click says no such thing. "all": every row, the literal reading of the paper's abstract.
        lists: the click is one choice out of its request's rows (`list_softmax`), not a matter of each row alone. For
            logs whose other rows were drawn beside a choice; there is no order then.
    """

    click: float = 1.0
    order: float = 1.0
    alignment: float = 0.1
    temperature: float = 0.1
    both_directions: bool = True
    aligned_rows: Literal["clicked", "all"] = "clicked"
    lists: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"the temperature must be positive, got {self.temperature}")
        if self.lists and self.order:
            raise ValueError(
                "a choice out of a list has no probability of its own that an order could build on: order=0"
            )


def click_order_bce(
    click_logit_B: Tensor, conversion_logit_B: Tensor, click_B: Tensor, order_B: Tensor, *, direct: bool = False
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of click and of order (CTCVR), each over all rows.

    With p = sigmoid(click) sigmoid(conversion), log p = logsigmoid(click) + logsigmoid(conversion) and
    1 - p = -expm1(log p): no product of small numbers is ever formed (ESMM, Ma et al. 2018). With `direct` the second
    logit is the order's own.
    """
    click = functional.binary_cross_entropy_with_logits(click_logit_B, click_B)
    if direct:
        return click, functional.binary_cross_entropy_with_logits(conversion_logit_B, order_B)
    log_p_B = functional.logsigmoid(click_logit_B) + functional.logsigmoid(conversion_logit_B)
    # 1 - p = (1 - p_click) + p_click (1 - p_conversion), a sum of positive terms: exact also where p is nearly 1.
    log_not_p_B = torch.logaddexp(
        functional.logsigmoid(-click_logit_B),
        functional.logsigmoid(click_logit_B) + functional.logsigmoid(-conversion_logit_B),
    )
    return click, -(order_B * log_p_B + (1 - order_B) * log_not_p_B).mean()


def list_softmax(click_logit_B: Tensor, click_B: Tensor, request_B: Tensor, log_q_B: Tensor) -> Tensor:
    """Cross-entropy of the clicked row among its request's rows, mean over clicks, corrected for how rows were drawn.

        L = - mean_clicked ( z - log q - log Z ),  Z = sum over the request's rows of e^{z - log q}

    A row drawn with probability q stands for 1 / q rows (log-q correction, Yi et al. 2019), so z alone orders any list.
    A little of (log Z)^2 is added: it keeps Z near 1, so that e^z is the share of choices itself.

    Args:
        request_B: int64, rows of one request have the same number; requests without a click teach nothing.
        log_q_B: log of the probability with which a row was drawn into its list.
    """
    _, list_B = torch.unique(request_B, return_inverse=True)
    lists = int(list_B.max()) + 1
    corrected_B = click_logit_B - log_q_B
    high_L = corrected_B.detach().new_full((lists,), -torch.inf).scatter_reduce(0, list_B, corrected_B.detach(), "amax")
    total_L = torch.zeros_like(high_L).index_add(0, list_B, torch.exp(corrected_B - high_L[list_B]))
    log_total_L = torch.log(total_L) + high_L
    clicks = click_B.sum().clamp_min(1.0)
    choice = -((corrected_B - log_total_L[list_B]) * click_B).sum() / clicks
    return choice + NORMALISER * (log_total_L[list_B].square() * click_B).sum() / clicks


def info_nce(
    anchor_BD: Tensor,
    positive_PD: Tensor,
    *,
    temperature: float,
    first: int = 0,
    group_B: Tensor | None = None,
    excluded_BP: Tensor | None = None,
    both_directions: bool = False,
) -> Tensor:
    """InfoNCE of B pairs by cosine, with other pairs' positives as negatives (van den Oord et al. 2018).

        L = - mean_b log ( e^{cos(a_b, p_b) / t} / sum_b' e^{cos(a_b, p_b') / t} )

    Args:
        positive_PD: the positives of these pairs and, beyond them, any further candidates.
        first: where the pairs' own positives begin.
        group_B: pairs of the same group are no negatives of each other (int64); the denominator leaves them out. For
            positives that are the pairs' own only.
        excluded_BP: the same said for each anchor and each candidate (bool); an anchor's own positive always stays.
        both_directions: the mean of this loss and the one with anchors and positives exchanged; without further
            candidates only.
    Returns:
        A scalar; 0 (with gradient 0) where fewer than two pairs, or no two groups, are there to compare.
    """
    cosine_BP = functional.normalize(anchor_BD, dim=1) @ functional.normalize(positive_PD, dim=1).T
    score_BP = cosine_BP / temperature
    target_B = torch.arange(len(score_BP), device=score_BP.device) + first
    if group_B is not None:
        excluded_BP = group_B[:, None] == group_B[None, :]
    if excluded_BP is not None:
        own_BP = torch.zeros_like(excluded_BP).scatter_(1, target_B[:, None], True)
        score_BP = score_BP.masked_fill(excluded_BP & ~own_BP, -torch.inf)
    if not len(score_BP):
        return score_BP.sum()
    loss = functional.cross_entropy(score_BP, target_B)
    if both_directions:
        loss = (loss + functional.cross_entropy(score_BP.T, target_B)) / 2
    return loss


def ranking_loss(scores: Scores, batch: Batch, config: LossConfig) -> Losses:
    """A ranker's loss: click and order, and the alignment of scenes where the ranker offers pairs.

    Raises ValueError for a batch without labels.
    """
    if batch.click_B is None or batch.order_B is None:
        raise ValueError("a loss needs a batch with labels; this one was built from a table without click and order")
    click, order = click_order_bce(
        scores.click_logit_B, scores.conversion_logit_B, batch.click_B, batch.order_B, direct=scores.direct
    )
    if config.lists:
        click = _list_loss(scores.click_logit_B, batch)
    parts = {"click": click, "order": order}
    total = config.click * click + config.order * order
    if scores.aligned is not None and config.alignment:
        chosen = (
            batch.click_B > 0 if config.aligned_rows == "clicked" else torch.ones_like(batch.click_B, dtype=torch.bool)
        )
        parts["alignment"] = info_nce(
            scores.aligned.scene_BA[chosen],
            scores.aligned.collaborative_BA[chosen],
            temperature=config.temperature,
            group_B=batch.scene_of_row_B[chosen],
            both_directions=config.both_directions,
        )
        total = total + config.alignment * parts["alignment"]
    return Losses(total, {name: part.detach() for name, part in parts.items()})


def _list_loss(click_logit_B: Tensor, batch: Batch) -> Tensor:
    if batch.request_B is None or batch.log_q_B is None or batch.click_B is None:
        raise ValueError(
            "lists need a batch that knows its requests; this one was built from a table without request ids"
        )
    return list_softmax(click_logit_B, batch.click_B, batch.request_B, batch.log_q_B)
