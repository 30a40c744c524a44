"""What a person types about stage 2, against the configuration that comes of it; and both verbs on the small city."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from feature_repo.workspace import Workspace
from serving.cli import app
from serving.stages_language import ContrastOptions, configuration
from trainers.language.clicks import TEST_HOLD_OUT, HoldOut
from trainers.language.contrast import ContrastConfig
from trainers.language.pretrain import PretrainConfig


def test_saying_nothing_is_the_default() -> None:
    assert configuration(ContrastOptions()) == ContrastConfig()


def test_every_option_arrives() -> None:
    options = ContrastOptions(
        model="m",
        steps=7,
        pairs={"user_poi": 3},
        weights={"user_user": 0.0},
        exposed=2,
        temperature=0.3,
        pooling="mean",
        user_side="whole",
        users="halves",
        bucket=("weather", "hour"),
        reading="directions",
        width=9,
        project=True,
        layers=4,
        cached_gradients=True,
        test=True,
        sharding="fsdp",
        seed=5,
    )
    config = configuration(options)
    plain = ContrastConfig()
    assert (config.model, config.pooling, config.heads.width, config.lora.first_layer) == ("m", "mean", 9, -4)
    assert config.draws.pairs == {**plain.draws.pairs, "user_poi": 3}
    assert config.draws.weights == {**plain.draws.weights, "user_user": 0.0}
    assert config.project and not plain.project
    assert (config.draws.exposed, config.draws.temperature, config.scoring.reading) == (2, 0.3, "directions")
    clicks = config.pairs.clicks
    assert (clicks.user_side, clicks.bucket, config.pairs.users) == ("whole", ("weather", "hour"), "halves")
    assert clicks.hold_out == dataclasses.replace(TEST_HOLD_OUT, seed=5) != HoldOut()
    assert (config.tune.steps, config.tune.sharding, config.tune.seed, config.pairs.seed) == (7, "fsdp", 5, 5)
    assert config.reader.cached_gradients


@pytest.mark.parametrize(
    "options, told",
    [
        ({"pooling": "first"}, r"pooling: expected one of \('last', 'mean', 'token'\), got 'first'"),
        ({"user_side": "half"}, "user_side"),
        ({"pairs": {"poi_user": 3}}, r"\['poi_user'\]; there are user_user, poi_poi, user_poi"),
        ({"sharding": "zero"}, "sharding"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_words_that_do_not_exist_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        configuration(ContrastOptions(**options))


def test_the_verbs_tune_and_test_an_embedder(
    scenerank: Callable[..., Any], city: Any, tiny_model: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "city")
    workspace.root.mkdir()
    workspace.sources.symlink_to(city.workspace.sources)
    small = ("--steps", "2", "--pairs", "user_poi=4", "--pairs", "poi_poi=2", "--pairs", "user_user=2", "--layers", "1")
    common = ("--language-model", tiny_model, "--workspace", workspace.root)
    tuned = scenerank("contrast", "--test", *small, *common)
    assert tuned.exit_code == 0, tuned.output
    assert "user poi exposed" in tuned.output
    model = workspace.language / "contrast-held-out" / "model"
    assert str(model) in tuned.words.replace(" ", "") and (model / "heads.safetensors").is_file()
    asked = scenerank("probe", "--moments", "20", *common)
    assert asked.exit_code == 0, asked.output
    assert "stage 2" in asked.output and "raw, one word" in asked.output and "all-MiniLM-L6-v2" in asked.output
    assert (workspace.language / "probe" / "probe.md").is_file()
    wrong = scenerank("contrast", "--weight", "user_user", *common)
    assert wrong.exit_code == 2 and "'user_user' is not kind=number" in wrong.words
    none = scenerank("contrast", "--layers", "0", *common)
    assert none.exit_code == 2 and "greater than or equal to 1" in none.words


def test_help_says_the_defaults_of_the_configurations():
    plain, learning = ContrastConfig(), PretrainConfig()
    kinds = ", ".join(f"{kind}={n}" for kind, n in plain.draws.pairs.items())
    weights = ", ".join(f"{kind}={w}" for kind, w in plain.draws.weights.items())
    assert plain.lora is not None and plain.lora.first_layer is not None
    said = {
        ("contrast", "--steps"): plain.tune.steps,
        ("contrast", "--pairs"): kinds,
        ("contrast", "--weight"): weights,
        ("contrast", "--exposed"): plain.draws.exposed,
        ("contrast", "--temperature"): plain.draws.temperature,
        ("contrast", "--bucket"): ", ".join(plain.pairs.clicks.bucket),
        ("contrast", "--width"): plain.heads.width,
        ("contrast", "--layers"): -plain.lora.first_layer,
        ("pretrain", "--steps"): learning.tune.steps,
    }
    shown = {(verb, option): shown_default(verb, option) for verb, option in said}
    assert shown == {asked: str(default) for asked, default in said.items()}


def shown_default(verb: str, option: str) -> object:
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    return next(parameter.show_default for parameter in command.params if option in parameter.opts)
