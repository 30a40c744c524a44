"""How a model is to be read: what its folder says, what the configuration says, and the version that follows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from trainers.language import encoder
from trainers.language.encoder import TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.heads import Groups, HeadConfig, Heads
from trainers.language.model import INSTALL, SMOLLM2, EmbeddedModel, Embedder, ModelError, sha256

TEXTS = ["Soup.", "Warm soup and bread near the station, open late.", "Fish", "Noodles for lunch", "a" * 40]


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_no_texts_give_no_vectors(tiny: EncoderConfig) -> None:
    assert len(TextEncoder(tiny).encode([], "poi_text")) == 0


def test_progress_ends_at_the_total(tiny: EncoderConfig) -> None:
    seen: list[tuple[str, int, int]] = []
    TextEncoder(dataclasses.replace(tiny, max_tokens=80)).encode(TEXTS, "poi_text", lambda *a: seen.append(a))
    assert seen[-1] == ("poi_text", 5, 5)
    assert len(seen) > 1


def test_version_names_model_template_pooling_and_length(tiny: EncoderConfig, tmp_path: Path) -> None:
    variants = [
        tiny,
        dataclasses.replace(tiny, pooling="mean"),
        dataclasses.replace(tiny, max_length=99),
        dataclasses.replace(tiny, templates={**TEMPLATES, "poi_text": "Place: {text}"}),
        dataclasses.replace(tiny, model="smollm2"),
    ]
    assert len({v.version("poi_text") for v in variants}) == len(variants)
    assert tiny.version("poi_text") != tiny.version("user_text")
    assert tiny.version("poi_text") == dataclasses.replace(tiny, max_tokens=7, threads=2).version("poi_text")


def test_version_follows_the_weights_not_the_path(tiny: EncoderConfig, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(tiny.model).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved = dataclasses.replace(tiny, model=str(copy))
    assert moved.version("poi_text") == tiny.version("poi_text")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert moved.version("poi_text") != tiny.version("poi_text")


def test_a_model_file_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "odd_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "weights.gguf").write_bytes(b"tampered")
    monkeypatch.syspath_prepend(tmp_path)
    odd = EmbeddedModel(name="odd", package="odd_model", sha256="0" * 64)
    with pytest.raises(ModelError, match=f"{sha256(package / 'weights.gguf')}.*expected {'0' * 64}"):
        odd.folder(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_absent_model_says_what_to_run(tmp_path: Path) -> None:
    absent = dataclasses.replace(SMOLLM2, package="no_such_package_here")
    with pytest.raises(ModelError, match=INSTALL):
        absent.folder(tmp_path)


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_model"
    package.mkdir()
    (package / "weights.gguf").write_bytes(b"not a model")
    monkeypatch.syspath_prepend(tmp_path)
    broken = EmbeddedModel(name="broken", package="broken_model", sha256=sha256(package / "weights.gguf"))
    with pytest.raises(Exception, match=r".+"):
        broken.folder(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": {"poi_text": "no slot"}}, r"template of poi_text: exactly one \{text\}"),
        ({"max_tokens": 0}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        EncoderConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no template for texts of kind 'menu'"):
        EncoderConfig().version("menu")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no .*safetensors"):
        EncoderConfig(model=str(tmp_path)).version("poi_text")


def one_word(kind: str) -> Embedder:
    return Embedder(templates={kind: "{text} is"}, pooling="mean", heads={}, project=False)


def test_a_tuned_model_is_read_as_it_was_tuned_unless_told_otherwise(
    tiny: EncoderConfig, tuned: Callable[[Embedder | None], EncoderConfig]
) -> None:
    noted = tuned(one_word("poi_text"))
    by_hand = dataclasses.replace(tiny, templates={"poi_text": "{text} is"}, pooling="mean")
    expected = TextEncoder(by_hand).encode(TEXTS, "poi_text")
    np.testing.assert_array_equal(TextEncoder(noted).encode(TEXTS, "poi_text"), expected)
    assert noted.embedder() == one_word("poi_text")
    overruled = dataclasses.replace(noted, templates=TEMPLATES, pooling="last")
    np.testing.assert_array_equal(
        TextEncoder(overruled).encode(TEXTS, "poi_text"), TextEncoder(tiny).encode(TEXTS, "poi_text")
    )
    with pytest.raises(ModelError, match="no template for texts of kind 'user_text'"):
        noted.template("user_text")


def test_a_model_that_was_trained_to_speak_is_read_like_any_other(
    tiny: EncoderConfig, tuned: Callable[[Embedder | None], EncoderConfig]
) -> None:
    assert tuned(None).embedder() == tiny.embedder()
    assert tuned(None).available_at() == datetime(2026, 3, 2, 18, 0, tzinfo=UTC)
    assert tiny.available_at() is None
    assert EncoderConfig().available_at() is None


def test_heads_project_the_texts_of_their_space(
    tiny: EncoderConfig, tuned: Callable[[Embedder | None], EncoderConfig]
) -> None:
    import torch

    torch.manual_seed(0)
    noted = tuned(Embedder(templates=TEMPLATES, pooling="last", heads={"poi_text": "poi"}))
    groups = Groups(spaces=("poi_text", "user_text"), sentences={})
    heads = Heads(["poi"], 32, HeadConfig(width=5), groups)
    states = TextEncoder(tiny).encode(TEXTS, "poi_text")
    heads.fit(torch.from_numpy(states), torch.zeros(len(states), dtype=torch.int64))
    heads.save(Path(noted.model))
    weight, bias = (p.detach().numpy() for p in heads.projectors["poi"].parameters())
    expected = (states - states.mean(0)) / (states - states.mean(0)).std() @ weight.T + bias
    loaded = TextEncoder(noted)
    np.testing.assert_allclose(loaded.encode(TEXTS, "poi_text"), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(loaded.encode(TEXTS, "user_text"), TextEncoder(tiny).encode(TEXTS, "user_text"))
    before = noted.version("poi_text")
    Heads(["poi"], 32, HeadConfig(width=5), groups).save(Path(noted.model))
    assert noted.version("poi_text") != before
    with pytest.raises(ModelError, match="leave unit_length off"):
        dataclasses.replace(noted, unit_length=True).embedder()
    bare = dataclasses.replace(noted, project=False)
    np.testing.assert_array_equal(TextEncoder(bare).encode(TEXTS, "poi_text"), states)
    assert bare.version("poi_text") != noted.version("poi_text")


def test_a_note_may_keep_the_heads_for_who_asks(tuned: Callable[[Embedder | None], EncoderConfig]) -> None:
    noted = tuned(Embedder(templates=TEMPLATES, pooling="last", heads={"poi_text": "poi"}, project=False))
    Heads(["poi"], 32, HeadConfig(width=5), Groups(spaces=("poi_text",), sentences={})).save(Path(noted.model))
    assert TextEncoder(noted).encode(TEXTS, "poi_text").shape == (len(TEXTS), 32)
    assert TextEncoder(dataclasses.replace(noted, project=True)).encode(TEXTS, "poi_text").shape == (len(TEXTS), 5)


def test_the_version_follows_the_note(tuned: Callable[[Embedder | None], EncoderConfig]) -> None:
    first = tuned(one_word("poi_text")).version("poi_text")
    other = dataclasses.replace(one_word("poi_text"), templates={"poi_text": "{text} was"})
    assert tuned(other).version("poi_text") != first
    assert tuned(one_word("poi_text")).version("poi_text") == first


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_lasttoken": True}, "last"),
    ],
)
def test_a_sentence_encoder_is_read_as_its_folder_says(
    tiny: EncoderConfig, tmp_path: Path, settings: dict[str, object], pooling: str
) -> None:
    config = sentence_encoder(tiny, tmp_path / "sentences", settings)
    assert config.embedder() == Embedder(
        templates=dict.fromkeys(TEMPLATES, "{text}"), pooling=pooling, heads={}, project=False
    )


def test_a_pooling_that_is_not_known_has_to_be_overruled(tiny: EncoderConfig, tmp_path: Path) -> None:
    config = sentence_encoder(tiny, tmp_path / "sentences", {"pooling_mode": "max"})
    with pytest.raises(ModelError, match=r"pooling \['max'\] is not known"):
        config.version("poi_text")
    assert dataclasses.replace(config, pooling="last").embedder().pooling == "last"


def sentence_encoder(tiny: EncoderConfig, folder: Path, settings: dict[str, object]) -> EncoderConfig:
    """The tiny model as sentence-transformers would keep it."""
    shutil.copytree(tiny.model, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return dataclasses.replace(tiny, model=str(folder))


def test_unit_length_is_part_of_the_version(tiny: EncoderConfig) -> None:
    unit = dataclasses.replace(tiny, unit_length=True)
    vectors = TextEncoder(tiny).encode(TEXTS, "poi_text")
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(TextEncoder(unit).encode(TEXTS, "poi_text"), expected, atol=1e-6)
    assert unit.version("poi_text") != tiny.version("poi_text")


POIS = {
    "bakery": (
        "Sourdough loaves and cinnamon buns from the oven.",
        "Croissants, rye bread and pastries every morning.",
    ),
    "sushi": ("Nigiri and maki rolls with raw salmon.", "A counter for sashimi, tuna rolls and miso soup."),
    "pizza": ("Wood-fired margherita and calzone.", "Thin crust with mozzarella, basil and tomato."),
    "bar": ("Cocktails and live music until two at night.", "Craft beer, gin and darts."),
    "burgers": ("Beef patties with cheese and fries.", "Double cheeseburger, milkshake and onion rings."),
    "coffee": ("Espresso, cappuccino and filter brews.", "Single origin beans, latte and quiet tables."),
}


@pytest.mark.story
def test_the_embedded_sentence_encoder_is_what_its_library_makes_of_it() -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text for pair in POIS.values() for text in pair]
    config = EncoderConfig(model="minilm", dtype="float32", threads=1, unit_length=True)
    expected = SentenceTransformer(str(config.folder()), device="cpu").encode(texts)
    np.testing.assert_allclose(TextEncoder(config).encode(texts, "poi_text"), expected, atol=1e-5)


@pytest.mark.story
def test_the_embedded_model_puts_like_with_like() -> None:
    """Chance is 1/11 for the nearest neighbour of a dozen POIs in six pairs; this asks for half."""
    loaded = TextEncoder(EncoderConfig(threads=1))
    texts = [text for pair in POIS.values() for text in pair]
    assert nearest_is_partner(loaded.encode(texts, "poi_text")) >= 6
    sentences = ["The weather outside: rain.", "The weather outside: drizzle.", "Today is Monday.", "Today is Tuesday."]
    rain, drizzle, monday, tuesday = centred(loaded.encode(sentences, "scene_text"))
    assert cosine_distance(rain, drizzle) < cosine_distance(rain, monday)
    assert cosine_distance(monday, tuesday) < cosine_distance(monday, drizzle)


def centred(vectors: np.ndarray) -> np.ndarray:
    moved = vectors - vectors.mean(0)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))


def nearest_is_partner(vectors: np.ndarray) -> int:
    """How many of 2k vectors (pairs side by side) have their partner as nearest neighbour."""
    unit = centred(vectors)
    similar = unit @ unit.T - 2 * np.eye(len(unit))
    return int((similar.argmax(1) == (np.arange(len(unit)) ^ 1)).sum())


def test_importing_the_configuration_loads_no_model_library() -> None:
    import subprocess
    import sys

    code = "import sys, trainers.language.embed; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    root = Path(encoder.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
