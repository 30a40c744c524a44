"""Tests that can fail: each of these mistakes, made in a copy of the sources, is found by the tests named beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One edit of one file, and the tests that must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


LOSSES, CONTRASTIVE = "tests/trainers/test_losses.py", "tests/trainers/language/test_contrastive.py"
ALIGNED = "return Aligned(self.align_scene(scene_BC), self.align_collaborative(tapped))"
MISTAKES = (
    Mistake(
        name="positives and negatives of a batch swapped",
        file="trainers/losses.py",
        right="target_B = torch.arange(len(score_BP), device=score_BP.device) + first",
        wrong="target_B = torch.arange(len(score_BP), device=score_BP.device).flip(0) + first",
        tests=(LOSSES, CONTRASTIVE),
    ),
    Mistake(
        name="positive swapped with what was shown and left",
        file="trainers/language/contrastive.py",
        right="torch.zeros(len(score), dtype=torch.long",
        wrong="torch.ones(len(score), dtype=torch.long",
        tests=(CONTRASTIVE,),
    ),
    Mistake(
        name="temperature inverted",
        file="trainers/losses.py",
        right="score_BP = cosine_BP / temperature",
        wrong="score_BP = cosine_BP * temperature",
        tests=(LOSSES, CONTRASTIVE),
    ),
    Mistake(
        name="temperature of the exposed inverted",
        file="trainers/language/contrastive.py",
        right="-torch.inf)], dim=1) / temperature",
        wrong="-torch.inf)], dim=1) * temperature",
        tests=(CONTRASTIVE,),
    ),
    Mistake(
        name="duplicates not masked",
        file="trainers/language/contrastive.py",
        right="(pairs.positive_B[:, None] == pool.positive_B)\n        | ",
        wrong="",
        tests=(CONTRASTIVE,),
    ),
    Mistake(
        name="gradient of the alignment into the scene detached",
        file="trainers/models/larr.py",
        right=ALIGNED,
        wrong=ALIGNED.replace("(scene_BC)", "(scene_BC.detach())"),
        tests=("tests/trainers/models/test_larr.py",),
    ),
    Mistake(
        name="gradient of the alignment into the ranker detached",
        file="trainers/models/larr.py",
        right=ALIGNED,
        wrong=ALIGNED.replace("(tapped)", "(tapped.detach())"),
        tests=("tests/trainers/models/test_larr.py",),
    ),
    Mistake(
        name="scenes shuffled between the requests of a batch",
        file="trainers/batch.py",
        right="np.broadcast_to(scene_of_row.reshape(-1), len(rows))",
        wrong="np.roll(np.broadcast_to(scene_of_row.reshape(-1), len(rows)), 7)",
        tests=("tests/trainers/test_batch.py",),
    ),
    Mistake(
        name="scene vectors shuffled between requests in the ranker",
        file="trainers/models/ranker.py",
        right="else scene_UC)[batch.scene_of_row_B]",
        wrong="else scene_UC)[batch.scene_of_row_B.flip(0)]",
        tests=("tests/contract/test_rankers.py::test_scores_do_not_depend_on_company",),
    ),
    Mistake(
        name="layers of scenarios outlive a change of weights",
        file="trainers/models/llm4msr.py",
        right="        self.kept = None\n        return super().train(mode)",
        wrong="        return super().train(mode)",
        tests=("tests/trainers/models/test_llm4msr.py",),
    ),
    Mistake(
        name="layers of one scenario given to another",
        file="trainers/models/llm4msr.py",
        right="layers=kept.layers.of(row_U)",
        wrong="layers=kept.layers.of(row_U.flip(0))",
        tests=("tests/trainers/models/test_llm4msr.py",),
    ),
    Mistake(
        name="split ignored in mining",
        file="trainers/language/clicks.py",
        right="clicked_before=cut)",
        wrong="clicked_before=schema.split.end)",
        tests=("tests/trainers/language/test_clicks.py", "tests/trainers/language/test_pairs.py"),
    ),
    Mistake(
        name="a prompt tells outcomes of its very moment",
        file="trainers/language/facts.py",
        right="WHERE {KNOWN} < moment",
        wrong="WHERE {KNOWN} <= moment",
        tests=("tests/trainers/language/test_facts.py",),
    ),
    Mistake(
        name="a prompt tells clicks before they were known",
        file="trainers/language/facts.py",
        right="greatest(i.{columns.EVENT_TIMESTAMP}, i.{columns.OUTCOME_TIMESTAMP},\n",
        wrong="greatest(i.{columns.EVENT_TIMESTAMP},\n",
        tests=("tests/trainers/language/test_facts.py",),
    ),
    Mistake(
        name="one prior for all snapshots",
        file="trainers/language/prompted.py",
        right="groupby(asked, key=lambda question: question.time_us)",
        wrong="groupby(asked, key=lambda question: 0)",
        tests=("tests/trainers/language/test_prompted.py",),
    ),
    Mistake(
        name="a state read before the last token that was written",
        file="trainers/language/generation.py",
        right="states.append(state_nE)",
        wrong="states.append(asked_nE)",
        tests=("tests/trainers/language/test_poolings.py",),
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_found(mistake: Mistake, tmp_path: Path) -> None:
    for folder in ("feature_repo", "trainers", "serving", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / mistake.file
    text = source.read_text()
    assert text.count(mistake.right) == 1, f"{mistake.file} no longer says {mistake.right!r} once"
    source.write_text(text.replace(mistake.right, mistake.wrong))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not full", *mistake.tests]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    # 1: tests ran and one failed. Any other status would mean that the mistake was not looked at.
    assert done.returncode == 1 and " failed" in done.stdout, done.stdout[-2000:] + done.stderr[-500:]
    assert "error" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
