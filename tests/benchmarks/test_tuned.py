from dataclasses import replace

import pytest

from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.tuned import TunedModel
from benchmarks.experiments.vectors import RandomVectors

SCALE = Scale()


@pytest.fixture
def places(tmp_path):
    return Places(scratch=tmp_path / "scratch", results=tmp_path / "results")


def test_a_model_is_named_by_every_stage_before_it(places):
    tuned = SCALE.tuned
    assert isinstance(tuned, TunedModel) and isinstance(tuned.base, TunedModel)
    assert [stage.model for stage in tuned.stages()] == ["pretrained", "tuned"]
    longer = replace(tuned.base, stage=replace(tuned.base.stage, tune=replace(tuned.base.stage.tune, steps=7)))
    assert replace(tuned, base=longer).source(places) != tuned.source(places)
    assert tuned.source(places).endswith("/language/contrast/model")
    assert tuned.base.source(places).endswith("/language/pretrain/model")


def test_cells_differ_with_the_training_of_what_they_read():
    tuned = SCALE.tuned
    other = replace(tuned, stage=replace(tuned.stage, draws=replace(tuned.stage.draws, temperature=0.2)))
    assert SCALE.larr(0).hash != replace(SCALE.larr(0), vectors=other).hash
    assert SCALE.random(0).hash != replace(SCALE.random(0), vectors=RandomVectors(like=other, seed=0)).hash
    assert SCALE.scene_ids(0).hash == replace(SCALE.scene_ids(0), vectors=other).hash


def test_a_model_that_was_not_trained_is_not_at_hand(places):
    assert not SCALE.tuned.is_at_hand(places)
    assert SCALE.tuned.versions(places) is None


def test_no_reported_seed_is_in_the_history_that_models_learn_from():
    assert SCALE.pretrained.world.seed not in {*SCALE.core_seeds, *SCALE.seeds}
    assert SCALE.pretrained.world.config.start == SCALE.world(0).config.start
