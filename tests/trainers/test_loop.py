from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from trainers.batch import Batch
from trainers.batches import InMemory, Streamed, fit_encoding
from trainers.encoding import Encoding
from trainers.loop import FitConfig, History, Optimizer, TrainingError, fit
from trainers.losses import Losses


class Slope(nn.Module):
    """Click logit = w . numbers, with dropout so that the random state matters."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.line = nn.Linear(numbers, 1)
        self.dropout = nn.Dropout(0.2)
        self.modes: list[bool] = []

    def loss(self, batch: Batch) -> Losses:
        self.modes.append(self.training)
        assert batch.click_B is not None
        logit = self.line(self.dropout(batch.numeric_BD)).squeeze(1)
        total = nn.functional.binary_cross_entropy_with_logits(logit, batch.click_B)
        return Losses(total, {"click": total.detach()})


def part(rows: int = 600, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, 4, generator=rng)
    none = torch.zeros(rows, 0, dtype=torch.int64)
    return Batch(
        categorical_BF=torch.arange(rows)[:, None],
        numeric_BD=numbers,
        recent_poi_BN=none,
        recent_age_BN=none.float(),
        text_row_BK=none,
        scene_of_row_B=torch.arange(rows) // 3,
        scene_id_US=torch.arange((rows + 2) // 3)[:, None],
        scene_row_US=torch.zeros((rows + 2) // 3, 1, dtype=torch.int64),
        click_B=(numbers[:, 0] > 0).float(),
        order_B=torch.zeros(rows),
    )


def scores(values: list[float]) -> Callable[[], Mapping[str, float]]:
    """A measure that returns the given scores one after another."""
    left = iter(values)
    return lambda: {"auc": next(left)}


def run(network: Slope, measure: Callable[[], Mapping[str, float]], seed: int = 0, epochs: int = 4) -> History:
    config = FitConfig(epochs=epochs, batch_size=100, patience=2, warmup_steps=2, learning_rate=0.02)
    return fit(network, network.loss, InMemory(part()), measure, config, seed=seed)


def fresh() -> Slope:
    torch.manual_seed(5)
    return Slope(4)


def test_one_seed_gives_the_same_bits() -> None:
    torch.manual_seed(123)
    first_network, second_network = fresh(), fresh()
    first = run(first_network, scores([0.1, 0.2, 0.3, 0.4]), seed=3)
    torch.rand(17)  # a caller's own random state has no say
    second = run(second_network, scores([0.1, 0.2, 0.3, 0.4]), seed=3)
    other = run(fresh(), scores([0.1, 0.2, 0.3, 0.4]), seed=4)
    assert [e.losses for e in first.epochs] == [e.losses for e in second.epochs]
    assert [e.losses for e in first.epochs] != [e.losses for e in other.epochs]
    assert torch.equal(first_network.line.weight, second_network.line.weight)


def test_the_caller_keeps_its_random_state() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    network = Slope(4)
    torch.manual_seed(9)
    run(network, scores([0.1, 0.2, 0.3, 0.4]))
    assert torch.equal(torch.rand(3), expected)


def test_losses_fall_and_modes_are_right() -> None:
    network = fresh()
    seen: list[bool] = []

    def measure() -> Mapping[str, float]:
        seen.append(network.training)
        return {"auc": float(len(seen))}

    history = run(network, measure)
    assert history.epochs[-1].losses["click"] < history.epochs[0].losses["click"]
    assert set(network.modes) == {True} and set(seen) == {False} and not network.training


def test_the_best_epoch_comes_back_and_patience_ends_training() -> None:
    network = fresh()
    kept: list[Tensor] = []
    plan = iter([0.5, 0.9, 0.7, 0.6, 0.99])

    def measure() -> Mapping[str, float]:
        kept.append(network.line.weight.detach().clone())
        return {"auc": next(plan)}

    history = run(network, measure, epochs=5)
    assert history.best == 1 and len(history.epochs) == 4
    assert torch.equal(network.line.weight, kept[1])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "step 0: the loss is"),
        (float("inf"), "step 0: the loss is"),
        (0.0, "epoch 0: all losses are exactly zero"),
    ],
)
def test_a_loss_that_is_none_stops_training(value: float, told: str) -> None:
    network = fresh()
    with pytest.raises(TrainingError, match=told):
        fit(
            network,
            lambda batch: Losses(network.line.weight.sum() * 0 + value, {}),
            InMemory(part()),
            scores([1.0]),
            FitConfig(),
            seed=0,
        )


def test_a_batch_that_teaches_nothing_is_no_fault() -> None:
    """One click alone has nothing to be compared with; an epoch may end in such a batch."""
    network = fresh()

    def objective(batch: Batch) -> Losses:
        losses = network.loss(batch)
        return losses if len(batch) > 1 else Losses(losses.total * 0, losses.parts)

    history = fit(network, objective, InMemory(part(61)), scores([1.0]), FitConfig(epochs=1, batch_size=20), seed=0)
    assert history.epochs[0].losses["total"] > 0


def test_a_score_that_is_none_stops_training() -> None:
    with pytest.raises(TrainingError, match="validation score 'auc' is nan"):
        run(fresh(), dict)
    with pytest.raises(TrainingError, match="no rows"):
        network = fresh()
        fit(network, network.loss, InMemory(part(0)), scores([1.0]), FitConfig(), seed=0)


def test_an_epoch_has_each_row_once_and_keeps_scenes_together() -> None:
    whole = part(600)
    generator = torch.Generator().manual_seed(0)
    epochs = [list(InMemory(whole).epoch(90, generator)) for _ in range(2)]
    for batches in epochs:
        rows = torch.cat([b.categorical_BF[:, 0] for b in batches])
        assert torch.equal(rows.sort().values, torch.arange(600))
        assert all(len(b.scene_id_US) == 30 for b in batches[:-1])
        for batch in batches:
            assert torch.equal(batch.scene_id_US[batch.scene_of_row_B, 0], batch.categorical_BF[:, 0] // 3)
    assert not torch.equal(epochs[0][0].categorical_BF, epochs[1][0].categorical_BF)


def test_a_large_table_is_trained_row_by_row() -> None:
    """A sparse table moves in the rows of the batch only; others keep their bits."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 4, sparse=True)
            self.line = nn.Linear(4, 1)

        def loss(self, batch: Batch) -> Losses:
            assert batch.click_B is not None
            logit = self.line(self.table(batch.categorical_BF[:, 0])).squeeze(1)
            total = nn.functional.binary_cross_entropy_with_logits(logit, batch.click_B)
            return Losses(total, {"click": total.detach()})

    network = Table()
    before = network.table.weight.detach().clone()
    Optimizer(network, FitConfig(), 10).step(network.loss, part(60))
    moved = (network.table.weight != before).any(dim=1)
    assert bool(moved[:60].all()) and not bool(moved[60:].any())
    with pytest.raises(ValueError, match="table_decay"):
        Optimizer(network, FitConfig(table_decay=0.1), 10)


def test_streamed_files_give_every_row_once(tmp_path: Path, pull: pa.Table, pull_schema: Schema) -> None:
    files = []
    for at in range(4):
        files.append(tmp_path / f"part-{at}.parquet")
        pq.write_table(pull.slice(at * 1500, 1500), files[-1])
    encoding = fit_encoding(files, pull_schema)
    whole = Encoding.fit(pull, pull_schema)
    assert encoding.vocabularies == whole.vocabularies and encoding.rates == whole.rates
    streamed = Streamed(tuple(files), encoding, buffer_rows=2000)
    oldest_and_newest = fit_encoding(files, pull_schema, scaler_rows=3000)
    assert (
        oldest_and_newest.scalers == Encoding.fit(pa.concat_tables([pull[:1500], pull[4500:6000]]), pull_schema).scalers
    )
    assert streamed.steps(256) == 24 and len(streamed.sample()) >= 2000
    batches = list(streamed.epoch(256, torch.Generator().manual_seed(1)))
    expected = Batch.from_arrow(pull, encoding)
    got = torch.cat([torch.cat([b.categorical_BF, b.numeric_BD.mul(1e4).long()], dim=1) for b in batches])
    want = torch.cat([expected.categorical_BF, expected.numeric_BD.mul(1e4).long()], dim=1)
    assert torch.equal(torch.unique(got, dim=0), torch.unique(want, dim=0)) and len(got) == len(want)
    assert max(len(b) for b in batches) <= 256
    clicks = sum(float(b.click_B.sum()) for b in batches if b.click_B is not None)
    assert clicks == sum(pull[columns.CLICK].to_pylist())
