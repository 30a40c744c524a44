"""How a model is to be read: what its folder says, what the configuration says, and the version that follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from trainers.language import encoder
from trainers.language.encoder import TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.model import INSTALL, SMOLLM2, EmbeddedModel, ModelError, sha256

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
