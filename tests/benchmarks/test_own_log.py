"""An experiment on anyone's log: which arms a log has what it takes for, and all of them on a tiny one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.experiments import own_log, run
from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import HashedWords
from feature_repo.datasets.mapping import shipped
from tests.feature_repo.datasets import public_sets
from tests.feature_repo.datasets.public_sets import found, shown, video, watched

QUICK = Scale(quick=True)
WORDS = HashedWords(width=16)
USERS = range(1, 21)
DAYS = [f"2023-05-{day}" for day in range(22, 32)]


def kuaisar(folder: Path) -> Path:
    """Twenty users, of whom each likes one of two kinds of video, for ten days."""
    draw = random.Random(0)
    recommended, searched = [], []
    for day in DAYS:
        for user in USERS:
            for _ in range(2):
                item, time = draw.randrange(30), f"{day} {draw.randrange(24):02d}:{draw.randrange(60):02d}:00"
                liked = draw.random() < (0.8 if item % 2 == user % 2 else 0.2)
                recommended.append(watched(user, item, int(liked), time))
            searched.append(found(user, draw.randrange(35), draw.randrange(2), 1, f"{day} 12:30:00"))
    items = [video(item, ("Funny", "Food")[item % 2], f"Kind {item % 4}") for item in range(30)]
    public_sets.kuaisar(folder, recommended, searched, items)
    rows = [f"{user},{user % 5},{user % 4},0,1" for user in USERS]
    (folder / "user_features.csv").write_text("\n".join([public_sets.USERS, *rows]) + "\n")
    return folder


def test_a_log_without_times_has_no_arm_that_reads_the_moment(tmp_path):
    public_sets.ali_ccp(tmp_path, {part: [shown(1, 0, 1, 2, 3)] for part in ("train", "val", "test")})
    made = own_log.experiment(QUICK, own_log.own_log(shipped()["ali_ccp"], tmp_path), WORDS)
    assert set(made.arms) == {"PLE", "LLM4MSR"}
    assert [(c.ours, c.reference) for c in made.comparisons] == [("LLM4MSR", "PLE")]
    assert made.compared == ("ctr_auc", "ctcvr_auc")


def test_other_files_make_another_world(tmp_path):
    folder = kuaisar(tmp_path)
    world = own_log.own_log(shipped()["kuaisar"], folder)
    assert own_log.own_log(shipped()["kuaisar"], folder) == world
    log = folder / "rec_inter.csv"
    log.write_text(log.read_text() + watched(1, 1, 1, "2023-05-31 23:00:00") + "\n")
    assert own_log.own_log(shipped()["kuaisar"], folder) != world


@pytest.mark.full
def test_both_papers_are_compared_on_a_public_set(tmp_path):
    world = own_log.own_log(shipped()["kuaisar"], kuaisar(tmp_path / "data"), every_days=1)
    made = own_log.experiment(QUICK, world, WORDS)
    places = Places(scratch=tmp_path / "scratch", results=tmp_path / "results")
    run.run([made], run.Options(places=places, command="a command"))
    told = json.loads((places.results / "own_log_kuaisar.json").read_text())
    assert {row["model"] for row in told["rows"]} == {"PLE", "PLE + scene ids", "LARR", "LLM4MSR", "LARR + LLM4MSR"}
    assert {row["metric"] for row in told["rows"]} >= {"ctr_auc"}
    assert all(not row["metric"].startswith("ctcvr") for row in told["rows"]), "KuaiSAR has no orders"
    slices = {row["slice"] for row in told["rows"]}
    assert slices == {"all", "scenario recommendation", "scenario search"}
    assert {(d["ours"], d["reference"]) for d in told["differences"]} >= {
        ("LARR + LLM4MSR", "LARR"),
        ("LLM4MSR", "PLE"),
    }
