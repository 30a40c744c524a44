import numpy as np
import pytest

from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import (
    HashedWords,
    Knowing,
    LanguageModel,
    RandomVectors,
    Reading,
    Shuffled,
    hashed_words,
    random_like,
    read,
)


@pytest.fixture
def places(tmp_path):
    return Places(scratch=tmp_path / "scratch", results=tmp_path / "results")


@pytest.fixture
def model(tiny_model):
    return LanguageModel(model=str(tiny_model))


def test_hashed_words_are_signed_counts_of_words():
    once, twice, both, neither = hashed_words(["Rain!", "rain, rain", "rain sun", "..."], 64)
    assert np.abs(once).sum() == 1
    np.testing.assert_array_equal(twice, 2 * once)
    np.testing.assert_array_equal(both, once + hashed_words(["sun"], 64)[0])
    assert not neither.any()


def test_random_vectors_keep_lengths_and_nothing_else():
    vectors = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32) + 3.0
    texts = [f"text {n}" for n in range(50)]
    found = random_like(vectors, texts, seed=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-5)
    cosine = (found * vectors).sum(1) / np.linalg.norm(vectors, axis=1) ** 2
    assert abs(cosine.mean()) < 0.06  # 50 cosines of deviation 1/8 each: three deviations of their mean
    np.testing.assert_array_equal(random_like(vectors[7:8], texts[7:8], seed=1)[0], found[7])
    assert not np.allclose(random_like(vectors, texts, seed=2), found)


def test_texts_are_read_once_a_version(places, model):
    reading = Reading(model=model, space="poi_text", texts=("soup", "bread"))
    assert reading.missing(places) == ["bread", "soup"]
    read(reading, places)
    assert reading.missing(places) == []
    more = Reading(model=model, space="poi_text", texts=("soup", "tea"))
    assert more.missing(places) == ["tea"]
    before = model.of("poi_text", ["soup"], places)
    read(more, places)
    found = model.of("poi_text", ["tea", "soup"], places)
    assert found.shape == (2, 32) and found.dtype == np.float32
    np.testing.assert_array_equal(found[1], before[0])
    other = Reading(model=model, space="user_text", texts=("soup",))
    assert other.missing(places) == ["soup"]  # another template is another version


def test_vectors_of_every_kind_have_one_row_a_text(places, model):
    read(Reading(model=model, space="poi_text", texts=("soup", "bread")), places)
    for kind in (model, RandomVectors(like=model), HashedWords(width=32)):
        found = kind.of("poi_text", ["soup", "bread", "soup"], places)
        assert found.shape == (3, 32)
        np.testing.assert_array_equal(found[0], found[2])
        assert not np.array_equal(found[0], found[1])


def test_chance_may_be_kept_to_some_spaces(places, model):
    for space in ("poi_text", "user_text"):
        read(Reading(model=model, space=space, texts=("soup", "bread")), places)
    kind = RandomVectors(like=model, spaces=("user_text",))
    meant = {space: model.of(space, ["soup", "bread"], places) for space in ("poi_text", "user_text")}
    np.testing.assert_array_equal(kind.of("poi_text", ["soup", "bread"], places), meant["poi_text"])
    assert not np.allclose(kind.of("user_text", ["soup", "bread"], places), meant["user_text"])


def test_a_model_that_is_not_at_hand_has_no_versions(places, model):
    assert LanguageModel(model=str(places.scratch / "gone")).versions(places) is None
    assert model.versions(places).keys() == {
        "poi_text", "user_text", "scenario_text", "scene_text"
    }  # fmt: skip


def test_shuffled_vectors_are_the_same_ones_for_others(places, model):
    texts = [f"text {n}" for n in range(20)]
    read(Reading(model=model, space="poi_text", texts=tuple(texts)), places)
    meant = model.of("poi_text", texts, places)
    mixed = Shuffled(like=model, seed=1).of("poi_text", [*texts, texts[3]], places)
    np.testing.assert_array_equal(np.sort(mixed[:20], axis=0), np.sort(meant, axis=0))
    assert (mixed[:20] != meant).any(axis=1).all()
    np.testing.assert_array_equal(mixed[20], mixed[3])


def test_prompts_and_texts_may_have_vectors_of_their_own_kind(places, model):
    read(Reading(model=model, space="poi_text", texts=("soup",)), places)
    kind = Knowing(texts=model, prompts=HashedWords(width=8))
    np.testing.assert_array_equal(kind.of("poi_text", ["soup"], places), model.of("poi_text", ["soup"], places))
    assert kind.of("user_knowledge", ["soup"], places).shape == (1, 8)
    assert kind.models("poi_text") == (model,) and kind.models("user_knowledge") == ()
