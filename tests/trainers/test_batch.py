from __future__ import annotations

from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
import torch

from feature_repo import columns
from feature_repo.datasets.schema import Schema
from feature_repo.scenes import EVENT_TIME_US
from trainers.batch import Batch
from trainers.encoding import Encoding


@pytest.fixture(scope="module")
def encoding(pull: pa.Table, pull_schema: Schema) -> Encoding:
    return Encoding.fit(pull, pull_schema)


@pytest.fixture(scope="module")
def batch(pull: pa.Table, encoding: Encoding) -> Batch:
    return Batch.from_arrow(pull, encoding)


def same(one: Batch, other: Batch) -> bool:
    """Equal row by row; scenes may be numbered differently."""
    for f in fields(Batch):
        if "_U" in f.name or f.name == "scene_of_row_B":
            continue
        ours, theirs = getattr(one, f.name), getattr(other, f.name)
        if ours is not theirs and not torch.equal(ours, theirs):
            return False
    return all(
        torch.equal(getattr(one, name)[one.scene_of_row_B], getattr(other, name)[other.scene_of_row_B])
        for name in ("scene_id_US", "scene_row_US")
    )


def test_shapes_and_types_are_the_named_ones(batch: Batch, encoding: Encoding, pull: pa.Table) -> None:
    rows, scenes = len(pull), len(encoding.scene_features)
    assert batch.categorical_BF.shape == (rows, len(encoding.categorical_columns))
    assert batch.numeric_BD.shape == (rows, len(encoding.scalers)) and batch.numeric_BD.dtype == torch.float32
    assert batch.recent_poi_BN.shape == batch.recent_age_BN.shape == (rows, columns.RECENT_LENGTH)
    assert batch.text_row_BK.shape == (rows, 1) and batch.scene_id_US.shape[1] == scenes == batch.scene_row_US.shape[1]
    assert bool(torch.isfinite(batch.numeric_BD).all()) and bool((batch.recent_age_BN >= 0).all())


def test_ids_say_what_the_table_says(batch: Batch, encoding: Encoding, pull: pa.Table) -> None:
    for at, name in enumerate(encoding.categorical_columns):
        words = (None, *encoding.vocabularies[name].values)
        assert [words[i] for i in batch.categorical_BF[:200, at].tolist()] == pull[name].to_pylist()[:200]


def test_recent_pois_come_newest_first_with_their_ages(batch: Batch, encoding: Encoding, pull: pa.Table) -> None:
    words = (None, *encoding.vocabularies[columns.POI_ID].values)
    lists, times = pull[columns.RECENT_POIS].to_pylist(), pull[columns.RECENT_TIMES].to_pylist()
    now = pull[EVENT_TIME_US].to_pylist()
    lengths = set()
    for row in range(0, 300, 5):
        expected = (lists[row] or [])[: columns.RECENT_LENGTH]
        lengths.add(len(expected))
        got = batch.recent_poi_BN[row].tolist()
        assert [words[i] for i in got[: len(expected)]] == expected and set(got[len(expected) :]) <= {0}
        hours = [(now[row] - t) / 3.6e9 for t in (times[row] or [])[: len(expected)]]
        assert batch.recent_age_BN[row, : len(expected)].tolist() == pytest.approx(np.log1p(hours).tolist(), rel=1e-6)
    assert 0 in lengths and columns.RECENT_LENGTH in lengths  # nobody's, and a list that was cut


def test_rows_of_one_scene_share_it_and_others_do_not(batch: Batch, encoding: Encoding, pull: pa.Table) -> None:
    names = [columns.scene(name) for name in encoding.scene_features]
    scenes = list(zip(*(pull[name].to_pylist() for name in names), strict=True))
    numbers = batch.scene_of_row_B.tolist()
    of_scene: dict[tuple[object, ...], int] = {}
    for scene, number in zip(scenes, numbers, strict=True):
        assert of_scene.setdefault(scene, number) == number
    assert len(set(of_scene.values())) == len(of_scene) == len(batch.scene_id_US)


@pytest.mark.parametrize("index", [torch.tensor([5]), torch.tensor([7, 7, 3]), torch.arange(2999, -1, -3)])
def test_choosing_rows_commutes_with_encoding(
    batch: Batch, encoding: Encoding, pull: pa.Table, index: torch.Tensor
) -> None:
    chosen = batch.rows(index)
    assert same(chosen, Batch.from_arrow(pull.take(pa.array(index.numpy())), encoding))
    assert len(chosen.scene_id_US) == len(torch.unique(batch.scene_of_row_B[index]))


def test_a_mask_chooses_too(batch: Batch) -> None:
    assert batch.click_B is not None
    mask = batch.click_B > 0
    assert same(batch.rows(mask), batch.rows(mask.nonzero().squeeze(1))) and len(batch.rows(mask)) == int(mask.sum())


def test_a_request_has_no_labels(encoding: Encoding, pull: pa.Table) -> None:
    request = Batch.from_arrow(pull.slice(0, 5).drop_columns([columns.CLICK, columns.ORDER]), encoding)
    assert request.click_B is None and request.rows(torch.tensor([0])).order_B is None


def test_strangers_are_unknown_not_an_error(encoding: Encoding, pull: pa.Table) -> None:
    row = pull.slice(0, 1)
    for name in (columns.USER_ID, columns.POI_ID, columns.scene("weather")):
        at = row.column_names.index(name)
        row = row.set_column(at, name, pa.array(["never seen"]))
    batch = Batch.from_arrow(row, encoding)
    unknown = [encoding.categorical_columns.index(name) for name in (columns.USER_ID, columns.POI_ID)]
    assert batch.categorical_BF[0, unknown].tolist() == [0, 0]
    assert batch.scene_id_US[0, encoding.scene_features.index("weather")] == 0
