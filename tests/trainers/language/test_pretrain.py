"""Stage 1 on a small city and a model of 60,000 weights: what it learns, leaves behind, resumes and shares."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from feature_repo import aggregates
from feature_repo.datasets.city import CityConfig, build
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from trainers.language.adapters import LoraConfig
from trainers.language.clicks import HoldOut
from trainers.language.corpus import CorpusConfig
from trainers.language.mixture import MixtureConfig
from trainers.language.model import Provenance, model_identity
from trainers.language.pretrain import PretrainConfig, folder, pretrain
from trainers.language.tuning import TuneConfig

STEPS = 24
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Workspace(tmp_path_factory.mktemp("small-city"))
    city = CityConfig(users=40, pois=40, start=date(2012, 9, 23), days=14, candidates=6)
    build(city, lambda what, done, total: None).write(root.sources)
    aggregates.build(root)
    return root.sources


@pytest.fixture
def workspace(sources: Path, tmp_path: Path) -> Workspace:
    (tmp_path / "sources").symlink_to(sources)
    return Workspace(tmp_path)


@pytest.fixture
def config(tiny_model: Path) -> PretrainConfig:
    return PretrainConfig(
        model=str(tiny_model),
        corpus=CorpusConfig(hold_out=HoldOut(pois=0.2), held_out_users=0.2),
        mixture=MixtureConfig(documents=8, max_length=96, max_tokens=400),
        lora=LoraConfig(rank=4),
        tune=TuneConfig(steps=STEPS, learning_rate=0.02, warmup_steps=3, log_every=8, checkpoint_every=5),
        test_documents=6,
        samples=1,
    )


def weights(model: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    return {name: p.detach() for name, p in loaded.named_parameters()}


def test_what_a_run_learns_and_leaves_behind(workspace, config, tiny_model):
    seen: list[tuple[str, int, int]] = []
    report = pretrain(workspace, config, lambda *progress: seen.append(progress))
    sets = {"held_out_pois", "conditional", "held_out_family", "histories", "general"}
    assert report.before.keys() == report.after.keys() == sets
    for name in ("held_out_pois", "conditional", "held_out_family", "histories"):
        before, after = report.before[name], report.after[name]
        assert after.all < 0.95 * before.all and after.content is not None and after.content < before.content
    assert report.after["general"].all < report.before["general"].all * 1.05
    assert report.read == {"place": STEPS * 3, "conditional": STEPS * 2, "history": STEPS, "general": STEPS * 2}
    assert report.trained_parameters < report.parameters / 4
    assert report.seconds > 0
    run = folder(workspace)
    written = {path.name for path in run.iterdir()}
    assert written == {"config.json", "losses.jsonl", "losses.png", "before.json", "after.json", "samples.txt",
                       "result.json", "model"}  # fmt: skip
    lines = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16, 24]
    assert lines[-1]["place"] < lines[0]["place"] and lines[-1]["tokens_per_second"] > 0
    samples = (run / "samples.txt").read_text()
    assert samples.startswith("given   <|name|>") and "\ntruth   " in samples
    assert seen[-1][1:] == (5, 5)
    assert {done for what, done, total in seen if what.startswith("loss") and total == STEPS} == set(
        range(1, STEPS + 1)
    )
    note = Provenance.read(run / "model")
    assert note is not None
    assert note.available_at == Schema.load(workspace.schema).split.train
    assert (note.stage, note.base, note.embedder) == ("pretrain", model_identity(str(tiny_model)), None)
    assert note.config["lora"]["rank"] == 4


def test_only_the_rows_of_special_tokens_move_in_the_token_matrix(workspace, config, tiny_model):
    long = dataclasses.replace(config.mixture, max_length=400)  # up to the clicks of every history
    few = dataclasses.replace(config, tune=dataclasses.replace(config.tune, steps=3), mixture=long)
    pretrain(workspace, few)
    before, after = weights(tiny_model), weights(folder(workspace) / "model")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = before[name].to(torch.bfloat16), after[name].to(torch.bfloat16)
        moved = [row for row in range(len(new)) if row >= len(old) or not torch.equal(old[row], new[row])]
        assert moved == list(range(384, 393))  # name .. hours, price_level, user, clicked
        mean = old[:384].float().mean(0)
        assert all((new[row].float() - mean).abs().max() > 1e-3 for row in moved)


def test_a_finished_run_is_not_run_again_and_another_one_is(workspace, config):
    short = dataclasses.replace(config, tune=dataclasses.replace(config.tune, steps=2))
    report = pretrain(workspace, short)
    files = {p: p.stat().st_mtime_ns for p in folder(workspace).rglob("*") if p.is_file()}
    calls: list[Any] = []
    assert pretrain(workspace, short, lambda *progress: calls.append(progress)) == report
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in folder(workspace).rglob("*") if p.is_file()} == files
    before = (folder(workspace) / "model" / "model.safetensors").read_bytes()
    pretrain(workspace, dataclasses.replace(short, mixture=dataclasses.replace(short.mixture, seed=1)))
    assert (folder(workspace) / "model" / "model.safetensors").read_bytes() != before


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill", [0, 2, 7, 12], ids=["while testing", "early", "after a checkpoint", "at the end"])
def test_a_run_killed_anywhere_ends_where_one_that_ran_through_does(workspace, config, sources, tmp_path, kill):
    config = dataclasses.replace(config, tune=dataclasses.replace(config.tune, steps=12, precision="float32"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sources").symlink_to(sources)
    through = Workspace(tmp_path / "other")
    expected = pretrain(through, config)

    def killing(what: str, done: int, total: int) -> None:
        if (what.startswith("loss") and done == kill) or (kill == 0 and done == 3):
            raise Killed

    with pytest.raises(Killed):
        pretrain(workspace, config, killing)
    assert not (folder(workspace) / "model").exists()
    torch.manual_seed(99)
    report = pretrain(workspace, config)
    assert report.after["held_out_pois"].all == pytest.approx(expected.after["held_out_pois"].all, rel=1e-5)
    ours, theirs = (weights(folder(w) / "model") for w in (workspace, through))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-6


def test_a_killed_run_leaves_the_model_of_the_run_before_it(workspace, config):
    short = dataclasses.replace(config, tune=dataclasses.replace(config.tune, steps=2))
    pretrain(workspace, short)
    before = (folder(workspace) / "model" / "model.safetensors").read_bytes()

    def killing(what: str, done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        pretrain(workspace, config, killing)
    assert (folder(workspace) / "model" / "model.safetensors").read_bytes() == before


def test_all_weights_can_be_trained_and_a_tuned_model_tuned_again(workspace, config, sources, tmp_path):
    full = dataclasses.replace(
        config, lora=None, tune=dataclasses.replace(config.tune, steps=6, learning_rate=3e-3, warmup_steps=1)
    )
    report = pretrain(workspace, full)
    assert report.trained_parameters == report.parameters
    assert report.after["held_out_pois"].all < report.before["held_out_pois"].all
    first = tmp_path / "first"
    (folder(workspace) / "model").rename(first)
    note = Provenance.read(first)
    assert note is not None
    later = datetime(2030, 1, 1, tzinfo=UTC)
    dataclasses.replace(note, available_at=later).write(first)
    again = pretrain(workspace, dataclasses.replace(config, model=str(first)))
    assert again.before["held_out_pois"].all == pytest.approx(report.after["held_out_pois"].all, rel=0.02)
    found = Provenance.read(folder(workspace) / "model")
    assert found is not None and found.available_at == later  # what its base saw counts, too


@pytest.fixture(scope="module")
def alone(sources: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    yield scenerank(sources, tiny_model, tmp_path_factory.mktemp("alone"), "-m", "serving.cli")


def scenerank(sources: Path, model: Path, root: Path, *how: str, options: tuple[str, ...] = ()) -> Workspace:
    """`scenerank pretrain` in a process, or in several, of its own."""
    (root / "sources").symlink_to(sources)
    verb = ["pretrain", "--language-model", str(model), "--steps", "4", "--documents", "8", "--workspace", str(root)]
    done = subprocess.run(
        [sys.executable, *how, *verb, *options], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held out pois") == 1
    return Workspace(root)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(alone, sources, tiny_model, tmp_path, sharding):
    """Whole models whose gradients are averaged, and sharded ones: the same losses, and a folder that says the same."""
    how = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "serving.cli")
    both = scenerank(sources, tiny_model, tmp_path, *how, options=("--sharding", sharding))
    ours, theirs = (json.loads((folder(w) / "result.json").read_text()) for w in (both, alone))
    assert ours["before"] == theirs["before"]
    for name, perplexity in theirs["after"].items():
        assert ours["after"][name]["all"] == pytest.approx(perplexity["all"], rel=2e-3)
    ours, theirs = (json.loads((folder(w) / "losses.jsonl").read_text()) for w in (both, alone))
    for name in ("total", "place", "conditional", "history", "general"):
        assert ours[name] == pytest.approx(theirs[name], rel=2e-3)
    ours, theirs = (weights(folder(w) / "model") for w in (both, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 0.01
