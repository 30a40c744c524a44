"""Contrastive tuning of the tiny model on a street where rain means soup and a clear sky means cake."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from feature_repo.scenes import SceneFeature
from feature_repo.workspace import Workspace
from trainers.language.adapters import LoraConfig
from trainers.language.clicks import ClickConfig, HoldOut
from trainers.language.contrast import EMBEDDING_TOKEN, ContrastConfig, contrast, folder
from trainers.language.contrastive import Scoring
from trainers.language.draws import DrawConfig
from trainers.language.encoder import TEMPLATES, EncoderConfig, TextEncoder
from trainers.language.heads import FILE, HeadConfig, Heads
from trainers.language.model import Provenance
from trainers.language.pairs import PairConfig
from trainers.language.tuning import TuneConfig

CUT = datetime(2026, 3, 3, 8, 0, tzinfo=UTC)
OFFERS = {"rain": ("soup", "ramen", "stew", "broth"), "clear": ("cake", "ice cream", "lemonade", "sorbet")}
PLACES = [
    (f"{offer} {n}", weather, f"This shop sells {offer} at number {n}.", offer)
    for weather, offers in OFFERS.items()
    for offer in offers
    for n in (1, 2)
]
SENTENCE = "The weather outside: {}."
Street = Callable[..., Workspace]


def log() -> list[tuple[Any, ...]]:
    """Every half hour one of four users is shown two places and clicks the one that suits the weather."""
    rng = np.random.default_rng(0)
    shown: list[tuple[Any, ...]] = []
    for step in range(90):
        weather = ("rain", "clear")[rng.integers(2)]
        for suits in ("rain", "clear"):
            place = PLACES[int(rng.integers(8)) + (0 if suits == "rain" else 8)]
            shown.append((step / 4, f"u{rng.integers(4)}", place[0], suits == weather, weather))
    # Both places of a step are one user's.
    return [(h, shown[at - at % 2][1], place, click, w) for at, (h, _, place, click, w) in enumerate(shown)]


def configuration(model: Path, **changes: Any) -> ContrastConfig:
    tuned = TuneConfig(
        steps=60, learning_rate=1e-3, learning_rates={"heads": 10.0}, warmup_steps=3, log_every=10, checkpoint_every=10
    )
    config = ContrastConfig(
        model=str(model),
        draws=DrawConfig(pairs={"user_user": 4, "poi_poi": 4, "user_poi": 16}, exposed=1, temperature=0.2),
        heads=HeadConfig(width=8),
        lora=LoraConfig(rank=4, first_layer=1),
        tune=tuned,
    )
    return dataclasses.replace(config, **changes)


def shorter(config: ContrastConfig, **tune: Any) -> ContrastConfig:
    return dataclasses.replace(config, tune=dataclasses.replace(config.tune, **{"steps": 3, "log_every": 1, **tune}))


def held_out(config: ContrastConfig) -> ContrastConfig:
    return dataclasses.replace(config, pairs=PairConfig(clicks=ClickConfig(hold_out=HoldOut(pois=0.25, seed=1))))


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {**load_file(model / "model.safetensors"), **load_file(model / FILE)}


def cosines(model: Path, sentences: Sequence[str], places: Sequence[str]) -> np.ndarray:
    encoder = TextEncoder(EncoderConfig(model=str(model), project=True))
    sides = (encoder.encode(sentences, "scene_text"), encoder.encode(places, "poi_text"))
    first, second = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    return np.asarray(first @ second.T)


def test_the_weather_finds_places_that_were_never_in_a_pair(street: Street, tiny_model: Path) -> None:
    """A quarter of the places is held out; their offers are sold elsewhere, too."""
    # The mean over the bare text: in a random model, words far from the last token leave hardly a trace in it.
    bare = dict.fromkeys(TEMPLATES, "{text}")
    config = held_out(configuration(tiny_model, pooling="mean", templates=bare, heads=HeadConfig(width=32)))
    report = contrast(street(PLACES, log()), config)
    assert len(report.held_out.pois) == 4
    # What was left is told from what was clicked; which of all soups it was, nobody can tell.
    assert report.last["user_poi_exposed"] < 0.5 * report.first["user_poi_exposed"]
    unseen = [place for place in PLACES if place[0] in report.held_out.pois]
    rain, clear = cosines(Path(report.model), [SENTENCE.format(w) for w in ("rain", "clear")], [p[2] for p in unseen])
    assert {p[1] for p in unseen} == {"rain", "clear"}
    assert [bool(r > c) for r, c in zip(rain, clear, strict=True)] == [p[1] == "rain" for p in unseen]


def test_the_folder_says_how_it_is_read_and_when_it_was_known(street: Street, tiny_model: Path) -> None:
    workspace = street(PLACES, log())
    config = shorter(configuration(tiny_model))
    report = contrast(workspace, config)
    model = Path(report.model)
    assert model == workspace.language / "contrast" / "model"
    note = Provenance.read(model)
    assert note is not None and note.embedder is not None
    assert (note.stage, note.available_at, report.cut) == ("contrast", CUT, CUT)
    assert note.embedder.heads == {"user_text": "user", "scene_text": "user", "poi_text": "poi"}
    assert note.embedder.templates == config.templates
    assert TextEncoder(EncoderConfig(model=str(model))).encode(["Soup."], "poi_text").shape == (1, 32)  # the state
    encoder = TextEncoder(EncoderConfig(model=str(model), project=True))
    assert encoder.encode(["Soup."], "poi_text").shape == (1, 8)
    assert encoder.encode(["The first page."], "scenario_text").shape == (1, 32)  # no pairs, no head
    modules = json.loads((model / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    assert json.loads((model / "1_Pooling" / "config.json").read_text())["pooling_mode_lasttoken"] is True
    assert set(report.pairs) == {"user_user", "poi_poi", "user_poi"} and min(report.pairs.values()) > 10


def test_what_its_base_saw_counts_for_when_it_is_available(street: Street, tiny_model: Path, tmp_path: Path) -> None:
    later = CUT + timedelta(days=900)
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    Provenance(stage="pretrain", base="", available_at=later, config={}).write(base)
    note = Provenance.read(Path(contrast(street(PLACES, log()), shorter(configuration(base))).model))
    assert note is not None and note.available_at == later
    shutil.rmtree(base)
    assert note.before == Provenance(stage="pretrain", base="", available_at=later, config={})


def test_layers_below_the_adapters_stay_what_they_were(street: Street, tiny_model: Path) -> None:
    report = contrast(street(PLACES, log()), shorter(configuration(tiny_model)))
    before, after = load_file(tiny_model / "model.safetensors"), load_file(Path(report.model) / "model.safetensors")
    changed = {
        name for name, tensor in after.items() if not torch.equal(tensor.float(), before[name].bfloat16().float())
    }
    assert changed and all(name.startswith("model.layers.1.") for name in changed)


def test_a_finished_run_does_nothing_and_an_interrupted_one_ends_in_the_same(street: Street, tiny_model: Path) -> None:
    workspace = street(PLACES, log())
    config = shorter(configuration(tiny_model), steps=6, checkpoint_every=2)
    whole = contrast(workspace, config)
    expected = weights(Path(whole.model))
    stamp = (Path(whole.model) / FILE).stat().st_mtime_ns
    assert contrast(workspace, config) == whole
    assert (Path(whole.model) / FILE).stat().st_mtime_ns == stamp

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("loss") and done == 3:
            raise KeyboardInterrupt

    other = shorter(config, steps=6, checkpoint_every=2, clip=0.9999)  # another configuration starts anew
    with pytest.raises(KeyboardInterrupt):
        contrast(workspace, other, interrupt)
    assert (Path(whole.model) / FILE).stat().st_mtime_ns == stamp  # the old model stays until there is a new one
    seen: list[int] = []
    contrast(workspace, other, lambda what, done, total: seen.append(done) if what.startswith("loss") else None)
    assert seen == [3, 4, 5, 6]
    resumed = weights(folder(workspace, other) / "model")
    fresh = Workspace(workspace.root.with_name("again"))
    fresh.root.mkdir()
    fresh.sources.symlink_to(workspace.sources)
    straight = weights(Path(contrast(fresh, other).model))
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=0, rtol=0)
    assert not all(torch.equal(expected[name], tensor) for name, tensor in straight.items())


def test_a_scene_feature_of_other_values_or_words_is_learned_anew(
    street: Street, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = street(PLACES, log())
    config = shorter(configuration(tiny_model), steps=2)
    before = (Path(contrast(workspace, config).model) / FILE).stat().st_mtime_ns
    monkeypatch.setattr(SceneFeature, "fingerprint", lambda feature: f"another {feature.name}")
    assert (Path(contrast(workspace, config).model) / FILE).stat().st_mtime_ns > before


def test_a_model_to_be_tested_never_takes_the_place_of_the_one_in_use(street: Street, tiny_model: Path) -> None:
    workspace = Workspace(Path("w"))
    config = configuration(tiny_model)
    names = [folder(workspace, c).name for c in (config, held_out(config))]
    token = dataclasses.replace(config, pooling="token")
    assert [*names, folder(workspace, token).name] == ["contrast", "contrast-held-out", "contrast-token"]


def test_a_special_token_can_carry_the_vector(street: Street, tiny_model: Path) -> None:
    """It stands at the end of every prompt, and its row in the token matrix is trained; other rows are not."""
    config = shorter(configuration(tiny_model, pooling="token", lora=LoraConfig(rank=2)))
    model = Path(contrast(street(PLACES, log()), config).model)
    note = Provenance.read(model)
    assert note is not None and note.embedder is not None
    assert all(template.endswith(EMBEDDING_TOKEN) for template in note.embedder.templates.values())
    rows = [load_file(path / "model.safetensors")["model.embed_tokens.weight"].float() for path in (tiny_model, model)]
    row = len(AutoTokenizer.from_pretrained(tiny_model))
    changed = (rows[0].bfloat16() != rows[1]).any(1)
    assert changed.nonzero().tolist() == [[row]]
    assert (rows[1][row] - rows[0][:row].mean(0)).abs().max() > 1e-3
    assert TextEncoder(EncoderConfig(model=str(model))).encode(["Soup."], "poi_text").shape == (1, 32)


@pytest.mark.parametrize(
    "changes, heads",
    [
        ({"scoring": Scoring(reading="directions")}, {"shared"}),
        ({"scoring": Scoring(symmetric=())}, {"poi", "poi_positive", "user", "user_positive"}),
        ({"pooling": "mean", "heads": HeadConfig(width=8, hidden=16, centre_features=False)}, {"poi", "user"}),
        ({"pairs": PairConfig(users="halves", clicks=ClickConfig(user_side="whole", bucket=()))}, {"poi", "user"}),
        ({"draws": DrawConfig(pairs={"user_poi": 8}, weights={"user_poi": 1.0}, exposed=0)}, {"poi", "user"}),
        ({"draws": DrawConfig(pairs={"user_user": 8}, weights={"user_user": 1.0})}, {"user"}),
    ],
)
def test_every_option_trains(street: Street, tiny_model: Path, changes: dict[str, Any], heads: set[str]) -> None:
    report = contrast(street(PLACES, log()), shorter(configuration(tiny_model, **changes), steps=2))
    assert set(Heads.load(Path(report.model)).note.names) == heads
    vectors = TextEncoder(EncoderConfig(model=report.model, project=True)).encode(["Soup.", "Cake."], "user_text")
    assert np.isfinite(vectors).all() and np.abs(vectors[0] - vectors[1]).max() > 0


# What `torchrun` runs: the same tuning on a workspace of its own for each way of sharding.
PROGRAM = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_contrast import configuration, halved
from feature_repo.workspace import Workspace
from trainers.language.contrast import contrast
for sharding in ("ddp", "fsdp"):
    contrast(Workspace(Path({root!r}) / sharding), halved(configuration(Path({model!r})), sharding))
"""


def halved(config: ContrastConfig, sharding: str) -> ContrastConfig:
    pairs = {kind: count // 2 for kind, count in config.draws.pairs.items()}
    return shorter(dataclasses.replace(config, draws=dataclasses.replace(config.draws, pairs=pairs)), sharding=sharding)


def test_two_processes_with_half_a_batch_each_learn_what_one_does(
    street: Street, tiny_model: Path, tmp_path: Path
) -> None:
    workspace = street(PLACES, log())
    for sharding in ("ddp", "fsdp"):
        (tmp_path / sharding).mkdir()
        (tmp_path / sharding / "sources").symlink_to(workspace.sources)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(here=str(Path(__file__).parent), root=str(tmp_path), model=str(tiny_model)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = contrast(workspace, shorter(configuration(tiny_model)))
    expected = weights(Path(alone.model))
    for sharding in ("ddp", "fsdp"):
        found = weights(tmp_path / sharding / "language" / "contrast" / "model")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name].float(), tensor.float(), atol=0.02, rtol=0.02, msg=f"{sharding} {name}"
            )
        lines = (tmp_path / sharding / "language" / "contrast" / "losses.jsonl").read_text().splitlines()
        # What one process would have lost on all pairs: its negatives are those of both.
        assert json.loads(lines[0])["total"] == pytest.approx(alone.first["total"], rel=0.02)
