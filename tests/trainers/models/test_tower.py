"""The loss against a value computed by hand, and what must hold of every vector of the towers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.batch import Batch
from trainers.models.tower import Items, PoiTower, QueryTower, TowerConfig, TowerSizes, TwoTower, sampled_softmax

SIZES = TowerSizes(user=(3, 5), scene=(4, 2), poi=(7, 3), numbers=2, place=6)
CONFIG = TowerConfig(embedding=4, hidden=8, taste=5, unknown_rate=0.2)


def batch(rows: int, seed: int = 0) -> Batch:
    """Random ids, numbers and a place code of length 1; every row a scene of its own."""
    generator = torch.Generator().manual_seed(seed)

    def ids(cardinalities: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randint(0, c, (rows,), generator=generator) for c in cardinalities], dim=1)

    place = torch.nn.functional.normalize(torch.randn(rows, SIZES.place, generator=generator), dim=1)
    return Batch(
        categorical_BF=ids(SIZES.user + SIZES.poi),
        numeric_BD=torch.cat([torch.randn(rows, SIZES.numbers, generator=generator), place], dim=1),
        recent_poi_BN=ids((7, 7, 7)),
        recent_age_BN=torch.rand(rows, 3, generator=generator),
        text_row_BK=torch.zeros(rows, 0, dtype=torch.int64),
        scene_of_row_B=torch.arange(rows),
        scene_id_US=ids(SIZES.scene),
        scene_row_US=torch.zeros(rows, len(SIZES.scene), dtype=torch.int64),
    )


def items(count: int = 6) -> Items:
    ids = torch.stack([torch.arange(count) + 1, torch.arange(count) % 3], dim=1)
    place = torch.nn.functional.normalize(torch.randn(count, SIZES.place, generator=torch.Generator().manual_seed(1)))
    return Items(categorical_PF=ids, place_PG=place, text_row_P=torch.arange(count) % 3)


def towers() -> TwoTower:
    torch.manual_seed(0)
    text = torch.cat([torch.zeros(1, 9), torch.randn(2, 9)])
    log_q = torch.log(torch.full((7,), 1 / 6))
    places = torch.tensor([0, 0, 1, 2, 3, 4, 5])
    return TwoTower(QueryTower(CONFIG, SIZES), PoiTower(CONFIG, SIZES, text), items(), places, log_q, 0.1)


def test_the_loss_is_the_one_computed_by_hand() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    poi = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    log_q = torch.log(torch.tensor([0.5, 0.25, 0.5]))
    # Temperature 0.5; each other POI's term is divided by (B - 1) q; rows 0 and 2 are copies of one POI.
    row_0 = math.log(math.exp(2.0) + math.exp(1.2) / (2 * 0.25)) - 2.0
    row_1 = math.log(math.exp(1.6) + 2 * math.exp(0.0) / (2 * 0.5)) - 1.6
    loss = sampled_softmax(query, poi, torch.tensor([3, 4, 3]), log_q, 0.5)
    assert float(loss) == pytest.approx((2 * row_0 + row_1) / 3, rel=1e-6)


def test_a_batch_of_one_poi_has_no_negatives() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    same = torch.full((4,), 2)
    assert float(sampled_softmax(vectors, vectors, same, torch.zeros(4), 0.1)) == pytest.approx(0.0, abs=1e-6)


def test_an_accidental_hit_costs_nothing_and_a_true_negative_does() -> None:
    vectors = torch.eye(3)
    vectors[2] = vectors[0]
    hit = sampled_softmax(vectors, vectors, torch.tensor([1, 2, 1]), torch.zeros(3), 0.1)
    negative = sampled_softmax(vectors, vectors, torch.tensor([1, 2, 3]), torch.zeros(3), 0.1)
    assert float(hit) < 0.001 < 0.2 < float(negative)


def test_log_q_undoes_the_popularity_of_negatives() -> None:
    """Clicks fall 6 : 2 : 1 on three POIs whatever the query: the learned logits must differ by ln 3 and ln 2."""
    torch.manual_seed(0)
    share = torch.tensor([6.0, 2.0, 1.0]) / 9
    logit = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([logit], lr=0.05)
    for _ in range(200):
        drawn = torch.multinomial(share, 256, replacement=True)
        loss = sampled_softmax(torch.ones(256, 1), logit[drawn][:, None], drawn, share.log()[drawn], 1.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learned = logit.detach()
    assert float(learned[0] - learned[1]) == pytest.approx(math.log(3), abs=0.15)
    assert float(learned[1] - learned[2]) == pytest.approx(math.log(2), abs=0.15)


def test_vectors_have_length_one_and_the_same_width() -> None:
    both = towers().eval()
    query, poi = both.query(batch(10)), both.poi(both.items)
    assert query.shape == (10, both.query.width) and poi.shape == (6, both.query.width)
    assert torch.allclose(query.norm(dim=1), torch.ones(10)) and torch.allclose(poi.norm(dim=1), torch.ones(6))


def test_a_query_does_not_depend_on_its_company() -> None:
    tower = towers().query.eval().double()
    whole = batch(50)
    whole = Batch(
        **{**vars(whole), "numeric_BD": whole.numeric_BD.double(), "recent_age_BN": whole.recent_age_BN.double()}
    )
    alone = torch.cat([tower(whole.rows(torch.tensor([i]))) for i in range(50)])
    assert torch.allclose(tower(whole), alone, atol=1e-12, rtol=0)


def test_the_query_does_not_read_the_poi() -> None:
    tower, one = towers().query.eval(), batch(5)
    other = one.categorical_BF.clone()
    other[:, len(SIZES.user) :] = 0
    assert torch.equal(tower(one), tower(Batch(**{**vars(one), "categorical_BF": other})))


def test_a_request_without_a_place_asks_for_no_place() -> None:
    tower, one = towers().query.eval(), batch(5)
    one.numeric_BD[:, SIZES.numbers :] = 0
    assert torch.equal(tower(one)[:, CONFIG.taste :], torch.zeros(5, SIZES.place))


def test_older_clicks_weigh_less() -> None:
    tower, one = towers().query.eval(), batch(1)
    pois, both = torch.tensor([[1, 2, 0]]), {}
    for name, ages in {"first": [[0.0, 4.0, 0.0]], "second": [[4.0, 0.0, 0.0]]}.items():
        recent = Batch(**{**vars(one), "recent_poi_BN": pois, "recent_age_BN": torch.tensor(ages)})
        both[name] = tower._recent(recent)
    first = tower.recent.column(0, torch.tensor([1]))
    assert torch.dist(both["first"], first) < torch.dist(both["second"], first)


def test_every_parameter_learns() -> None:
    both = towers().train()
    for seed in range(3):
        both.loss(batch(40, seed)).backward()
    assert [name for name, p in both.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
