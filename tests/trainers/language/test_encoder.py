"""The encoder against the model run by hand, one text at a time and without padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.language import encoder
from trainers.language.encoder import EncoderConfig, TextEncoder, batch_by_length
from trainers.language.model import INSTALL, SMOLLM2, EmbeddedModel, ModelError, sha256

TEXTS = ["Soup.", "Warm soup and bread near the station, open late.", "Fish", "Noodles for lunch", "a" * 40]


def by_hand(config: EncoderConfig, text: str) -> np.ndarray:
    """Hidden states (tokens, width) of one prompt, straight from the library."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    model.eval()
    tokens = AutoTokenizer.from_pretrained(config.model)(text, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(model(**tokens, output_hidden_states=True).hidden_states[-1][0].numpy())


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_each_text_alone_in_input_order(
    tiny: EncoderConfig, pooling: Literal["last", "mean"]
) -> None:
    config = dataclasses.replace(tiny, pooling=pooling, max_tokens=200)
    vectors = TextEncoder(config).encode(TEXTS, "poi_text")
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = by_hand(config, config.template("poi_text").replace("{text}", text))
        expected = states[-1] if pooling == "last" else states.mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert vectors.dtype == np.float32


def test_batch_composition_does_not_change_a_vector(tiny: EncoderConfig) -> None:
    together = TextEncoder(dataclasses.replace(tiny, max_tokens=100_000)).encode(TEXTS, "user_text")
    alone = TextEncoder(dataclasses.replace(tiny, max_tokens=1)).encode(TEXTS[::-1], "user_text")[::-1]
    assert max(map(cosine_distance, together, alone)) < 1e-5
    rounded = dataclasses.replace(tiny, dtype="bfloat16")
    half = TextEncoder(rounded).encode(TEXTS, "user_text")
    half_alone = TextEncoder(dataclasses.replace(rounded, max_tokens=1)).encode(TEXTS, "user_text")
    assert max(map(cosine_distance, half, half_alone)) < 1e-2


def test_a_sentence_encoder_never_attends_to_padding(tiny: EncoderConfig, tmp_path: Path) -> None:
    """Attention in both directions sees padding unless it is masked; a causal model would not notice."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = BertConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    BertModel(sizes).save_pretrained(tmp_path)
    config = dataclasses.replace(tiny, model=str(tmp_path), pooling="mean", templates={"poi_text": "{text}"})
    together = TextEncoder(config).encode(TEXTS, "poi_text")
    alone = TextEncoder(dataclasses.replace(config, max_tokens=1)).encode(TEXTS, "poi_text")
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_text_that_ends_in_the_padding_token_keeps_it(tiny: EncoderConfig) -> None:
    bare = dataclasses.replace(tiny, templates={"poi_text": "{text}"})
    texts = ["Fish<end>", "Warm soup and bread near the station"]
    vectors = TextEncoder(bare).encode(texts, "poi_text")
    np.testing.assert_allclose(vectors[0], by_hand(bare, texts[0])[-1], atol=1e-5)
    assert cosine_distance(vectors[0], by_hand(bare, "Fish")[-1]) > 1e-3


def test_long_texts_are_cut_and_their_template_is_not(tiny: EncoderConfig) -> None:
    config = dataclasses.replace(tiny, max_length=60)
    loaded = TextEncoder(config)
    template = config.template("poi_text")
    suffix = loaded.token_ids([""], template)[0][-12:]
    for text in ("bread " * 300, "x" * 900, "soup " * 30 + "é" * 50):
        (ids,) = loaded.token_ids([text], template)
        assert 55 <= len(ids) <= 60
        assert ids[-12:] == suffix
    with pytest.raises(ModelError, match="no room for the template"):
        TextEncoder(dataclasses.replace(tiny, max_length=5)).encode(["bread " * 9], "poi_text")


def test_no_texts_give_no_vectors_and_an_empty_prompt_is_an_error(tiny: EncoderConfig) -> None:
    assert TextEncoder(tiny).encode([], "poi_text").shape == (0, 32)
    bare = TextEncoder(dataclasses.replace(tiny, templates={"poi_text": "{text}"}))
    with pytest.raises(ModelError, match="text 1 is empty"):
        bare.encode(["Fish", ""], "poi_text")


def test_progress_ends_at_the_total(tiny: EncoderConfig) -> None:
    seen: list[tuple[str, int, int]] = []
    TextEncoder(dataclasses.replace(tiny, max_tokens=80)).encode(TEXTS, "poi_text", lambda *a: seen.append(a))
    assert seen[-1] == ("poi_text", 5, 5)
    assert len(seen) > 1


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2000))
def test_batches_cover_every_text_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    batches = [b.tolist() for b in batch_by_length(lengths, max_tokens)]
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= max_tokens for b in batches)


def test_version_names_model_template_pooling_and_length(tiny: EncoderConfig, tmp_path: Path) -> None:
    variants = [
        tiny,
        dataclasses.replace(tiny, pooling="mean"),
        dataclasses.replace(tiny, max_length=99),
        dataclasses.replace(tiny, templates={**tiny.templates, "poi_text": "Place: {text}"}),
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
