"""Steps of contrastive tuning on pairs that are written down."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.language.clicks import NONE, HeldOut, PairError, SpaceText
from trainers.language.contrastive import Scoring
from trainers.language.draws import ContrastTask, DrawConfig, Step
from trainers.language.pairs import Kind, Mined, Pairs

TEXTS = 12
PROMPTS = [[n] * (n + 1) for n in range(TEXTS)]


def of(anchors: list[list[int]], positives: list[list[int]], exposed: list[list[int]] | None = None) -> Pairs:
    count = len(anchors)
    return Pairs(
        anchor_NK=np.array(anchors, np.int32),
        positive_NK=np.array(positives, np.int32),
        exposed_NE=np.array(exposed or [[]] * count, np.int32).reshape(count, -1),
        anchor_N=np.arange(count),
        positive_N=np.arange(count) + 100,
        group_N=np.arange(count) + 200,
        probability_N=np.full(count, 1 / count),
    )


PAIRS: dict[Kind, Pairs] = {
    "user_user": of([[0], [1], [2]], [[1], [2], [0]]),
    "poi_poi": of([[6], [7], [8]], [[7], [8], [6]]),
    "user_poi": of(
        [[0, 3, 4], [1, 3, NONE], [2, NONE, NONE], [0, 5, 4]],
        [[6], [7], [8], [9]],
        [[10, 11, 7], [NONE, NONE, NONE], [10, NONE, NONE], [6, 11, NONE]],
    ),
}
ALL = DrawConfig(pairs={"user_user": 2, "poi_poi": 2, "user_poi": 3}, exposed=2)


def task(config: DrawConfig = ALL, scoring: Scoring | None = None, seed: int = 0) -> ContrastTask:
    texts = tuple(SpaceText("poi_text", str(n)) for n in range(TEXTS))
    mined = Mined(texts=texts, pairs=PAIRS, held_out=HeldOut(), cut=datetime(2026, 3, 3, tzinfo=UTC))
    return ContrastTask(mined, PROMPTS, np.arange(TEXTS), config, scoring or Scoring(), seed=seed)


def rows(step: Step, kind: Kind) -> list[tuple[list[int], list[int], list[int]]]:
    """Anchors, positives and exposed texts of each pair by number."""
    draw = step.draws[kind]

    def numbers(side: np.ndarray) -> list[int]:
        return [int(step.texts[at]) for at in side if at != NONE]

    return [
        (numbers(a), numbers(p), numbers(e))
        for a, p, e in zip(draw.anchor_BK, draw.positive_BK, draw.exposed_BE, strict=True)
    ]


def test_a_step_is_a_function_of_seed_and_number() -> None:
    first, again = (rows(task().batch(4, 0, 1), "user_poi") for _ in range(2))
    assert first == again
    assert first != rows(task().batch(5, 0, 1), "user_poi")
    assert first != rows(task(seed=1).batch(4, 0, 1), "user_poi")


def test_processes_share_the_draw_of_a_step() -> None:
    alone = task().batch(3, 0, 1)
    half = dataclasses.replace(ALL, pairs={"user_user": 1, "poi_poi": 1, "user_poi": 1})
    shares = [task(half).batch(3, rank, 2) for rank in (0, 1)]
    assert len(rows(alone, "user_user")) == 2
    for kind in ("user_user", "poi_poi"):
        assert rows(shares[0], kind) + rows(shares[1], kind) == rows(alone, kind)


def test_drawn_pairs_are_mined_pairs() -> None:
    """Sides are subsets of mined sides that are never empty; exposed texts are the anchor's own."""
    seen: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    mined = PAIRS["user_poi"]
    for step in range(40):
        for anchors, positives, exposed in rows(task().batch(step, 0, 1), "user_poi"):
            at = int(np.flatnonzero(mined.positive_NK[:, 0] == positives[0])[0])
            assert anchors and set(anchors) <= set(mined.anchor_NK[at])
            assert len(exposed) <= 2 and set(exposed) <= set(mined.exposed_NE[at])
            assert len(exposed) == min(2, int((mined.exposed_NE[at] != NONE).sum()))
            seen[at] += 1
            sizes[len(anchors)] += 1
    assert all(abs(count - 30) < 12 for count in seen.values()), "drawn without replacement, equally often"
    assert min(sizes[1], sizes[2], sizes[3]) > 10


def test_no_dropout_keeps_sides_whole() -> None:
    config = dataclasses.replace(ALL, dropout=0.0)
    sides = {tuple(a) for step in range(9) for a, _, _ in rows(task(config).batch(step, 0, 1), "user_poi")}
    assert sides == {(0, 3, 4), (1, 3), (2,), (0, 5, 4)}


def test_every_distinct_text_is_read_once() -> None:
    step = task().batch(0, 0, 1)
    named = {n for kind in step.draws for row in rows(step, kind) for side in row for n in side}
    assert step.texts.tolist() == sorted(named)
    assert task().tokens(step) == sum(n + 1 for n in named)


class Table(nn.Module):
    """Stands where the language model stands: a free vector for each text, in the space of each head."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        super().__init__()
        self.heads = nn.ParameterDict(vectors)

    def forward(self, prompts: list[list[int]], groups: Tensor) -> dict[str, Tensor]:
        assert [prompt[0] for prompt in prompts] == groups.tolist()
        return {name: vectors[groups] for name, vectors in self.heads.items()}


def compass(*degrees: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_the_loss_of_a_step_by_hand() -> None:
    """User-POI alone, both pairs in the batch, temperature 0.5, as cosines of the angles between them.

    Anchors: texts 0 and 1 (0 and 90 degrees); positives: 2 and 3 (60 and 90); exposed to the first: 4 (180).
    In batch: differences own - other are cos 60 - cos 90 = 0.5 and cos 0 - cos 30 = 0.13397. Exposed: cos 60 - cos 180
    = 1.5, and nothing for the second. Twice each at this temperature.
    """
    pairs: dict[Kind, Pairs] = {"user_poi": of([[0], [1]], [[2], [3]], [[4], [NONE]])}
    texts = tuple(SpaceText("poi_text", str(n)) for n in range(5))
    mined = Mined(texts=texts, pairs=pairs, held_out=HeldOut(), cut=datetime(2026, 3, 3, tzinfo=UTC))
    config = DrawConfig(
        pairs={"user_poi": 2}, weights={"user_poi": 2.0}, in_batch_weight=3.0, exposed_weight=5.0, temperature=0.5
    )
    made = ContrastTask(mined, [[n] for n in range(5)], np.arange(5), config, Scoring())
    # What the other head would say of each text must not matter.
    table = Table({"user": compass(0, 90, 7, 7, 7), "poi": compass(33, 33, 60, 90, 180)})
    losses = made.losses(table, made.batch(0, 0, 1))
    in_batch = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-0.267949))) / 2
    exposed = math.log(1 + math.exp(-3.0)) / 2
    assert losses.parts["user_poi_in_batch"].item() == pytest.approx(in_batch, abs=1e-5)
    assert losses.parts["user_poi_exposed"].item() == pytest.approx(exposed, abs=1e-5)
    assert losses.total.item() == pytest.approx(2 * (3 * in_batch + 5 * exposed), abs=1e-5)


def test_learning_draws_pairs_together_and_pushes_what_was_left_away() -> None:
    """A free vector for each text ends where the pairs say, for both readings of the scoring."""
    for scoring in (Scoring(), Scoring(reading="directions")):
        torch.manual_seed(0)
        made = task(scoring=scoring)
        names = {name for kind in PAIRS for name in scoring.projectors(kind)}
        table = Table({name: torch.randn(TEXTS, 8) for name in sorted(names)})
        optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
        for step in range(150):
            losses = made.losses(table, made.batch(step, 0, 1))
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
        user, poi = (table.heads[name].detach() for name in scoring.projectors("user_poi"))
        cosine = nn.functional.normalize(user[[0, 3, 4]].sum(0), dim=0) @ nn.functional.normalize(poi, dim=1).T
        assert cosine[6] > cosine[10] and cosine[6] > cosine[11] and cosine[6] > cosine[7]


def test_a_kind_without_weight_is_not_drawn_and_one_without_pairs_is_refused() -> None:
    light = dataclasses.replace(ALL, weights={"user_user": 0.0, "poi_poi": 1.0, "user_poi": 1.0})
    assert set(task(light).batch(0, 0, 1).draws) == {"poi_poi", "user_poi"}
    with pytest.raises(PairError, match="nothing to learn"):
        task(dataclasses.replace(ALL, weights={}))
    mined = Mined(texts=(), pairs={"user_poi": PAIRS["user_poi"]}, held_out=HeldOut(), cut=datetime.now(UTC))
    with pytest.raises(PairError, match=r"\['user_user', 'poi_poi'\]; set their weight to 0"):
        ContrastTask(mined, PROMPTS, np.arange(TEXTS), ALL, Scoring())
    with pytest.raises(PairError, match="temperature must be positive"):
        DrawConfig(temperature=0.0)
    with pytest.raises(PairError, match="must not be negative"):
        DrawConfig(exposed_weight=-1.0)
