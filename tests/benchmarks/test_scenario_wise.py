"""The published protocol on films that are made by hand: what goes in, how it is cut, what a table says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.experiments import msr_scenario_wise as experiment
from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import Options
from benchmarks.experiments.scenario_wise import DOMAINS, SHARES, Films, Found, Run, films, trained
from feature_repo import columns
from trainers.models.backbones.shared_bottom import SharedBottom

AGES = ("18 to 24", "25 to 34", "56 or older")


def tables(ratings: int = 2000, users: int = 30, items: int = 12) -> dict[str, pa.Table]:
    """Everybody in the first domain likes films of the first genre, in the others those of the second."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, users, ratings), rng.integers(0, items, ratings)
    liked = (item % 2 == 0) == (user % 3 == 0)
    click = np.where(rng.random(ratings) < 0.9, liked, ~liked)
    return {
        "impressions": pa.table(
            {
                columns.USER_ID: [f"u{n}" for n in user],
                columns.POI_ID: [f"f{n}" for n in item],
                columns.SCENARIO_ID: [DOMAINS[n % 3] for n in user],
                columns.CLICK: pa.array(click.astype(np.int8)),
            }
        ),
        "users": pa.table(
            {
                columns.USER_ID: [f"u{n}" for n in range(users)],
                "gender": ["woman", "man"] * (users // 2),
                "occupation": ["writer"] * users,
                "zip_prefix": [f"{n % 5}" for n in range(users)],
                "age": [AGES[n % 3] for n in range(users)],
            }
        ),
        "pois": pa.table(
            {
                columns.POI_ID: [f"f{n}" for n in range(items)],
                columns.CATEGORY: [("Drama", "Comedy")[n % 2] for n in range(items)],
            }
        ),
    }


@pytest.fixture(scope="module")
def made() -> Films:
    return films(tables())


def test_rows_are_dense_ids_and_a_standardised_age(made: Films) -> None:
    # Domain, user, gender, occupation, zip; film, genre: each with an unknown one that never occurs.
    assert made.sizes.cardinalities == (4, 31, 3, 2, 6, 13, 3) and made.sizes.user_fields == 5
    ids = made.batch.categorical_BF
    assert int(ids.min()) == 1 and tuple((ids.amax(0) + 1).tolist()) == made.sizes.cardinalities
    log = tables()["impressions"]
    assert [DOMAINS[n] for n in made.domain_B.tolist()] == log[columns.SCENARIO_ID].to_pylist()
    age = made.batch.numeric_BD[:, 0]
    assert abs(float(age.mean())) < 1e-5 and float(age.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    oldest = made.domain_B == 2
    assert float(age[oldest].min()) > float(age[~oldest].max())


def test_the_cut_takes_every_row_once_and_follows_the_seed(made: Films) -> None:
    parts = made.cut(3)
    assert [len(part) for part in parts] == [round(share * 2000) for share in SHARES]
    assert torch.equal(torch.sort(torch.cat(parts)).values, torch.arange(2000))
    assert torch.equal(made.cut(3)[2], parts[2]) and not torch.equal(made.cut(4)[2], parts[2])


def test_a_difference_between_domains_is_learned(made: Films) -> None:
    usual = Run(backbone=SharedBottom.Config(bottom_widths=(16,), tower_widths=(8,)), seed=0)
    found = trained(replace(usual, fit=replace(usual.fit, batch_size=64, learning_rate=1e-2, epochs=8)), made)
    assert found.auc > 0.82  # nine in ten keep to their taste
    assert len(found.domain_auc) == 3 and min(found.domain_auc) > 0.75
    assert found.log_loss < 0.5 and found.parameters > 0


def test_the_table_stands_ours_beside_the_published(tmp_path) -> None:
    one = Found(
        auc=0.8161,
        log_loss=0.5156,
        domain_auc=(0.82, 0.81, 0.80),
        domain_log_loss=(0.5, 0.5, 0.5),
        epochs=15,
        seconds=90.0,
        parameters=1000,
    )
    text = experiment.markdown(
        {"SharedBottom": [one, replace(one, auc=0.8163)], "OMoE": [one]},
        Options(places=Places(scratch=tmp_path, results=tmp_path), command="a command"),
        [0, 1],
    )
    assert "| SharedBottom | 0.8162 ± 0.0013 (0.8095) | +0.0067 |" in text
    assert "| OMoE | 0.8161 | - |" in text and "`a command`" in text


def test_every_backbone_that_was_published_is_run() -> None:
    runs = experiment.experiment(Scale())
    assert set(experiment.PUBLISHED) <= set(runs) and set(experiment.DEFECTS) <= set(experiment.PUBLISHED)
    assert all([run.seed for run in of_one] == [0, 1, 2, 3, 4] for of_one in runs.values())
    assert [len(of_one) for of_one in experiment.experiment(Scale(quick=True)).values()] == [1] * len(runs)
