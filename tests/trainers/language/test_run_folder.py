"""A run folder: the same configuration goes on, another one starts anew, and nothing finished is lost to either."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from trainers.language.run_folder import Checkpoint, Run


@dataclass(frozen=True)
class Asked:
    steps: int
    where: Path = Path("/somewhere")


def finished(folder: Path, steps: int) -> Run:
    run = Run(folder, Asked(steps))
    run.resume()
    run.log(1, {"total": 2.0})
    run.model.mkdir(exist_ok=True)
    (run.model / "weights").write_text(f"of {steps}")
    run.finish({"perplexity": 3.5})
    return run


def test_the_same_configuration_is_found_finished(tmp_path):
    assert not Run(tmp_path / "run", Asked(3)).finished
    finished(tmp_path / "run", 3)
    again = Run(tmp_path / "run", Asked(3))
    assert again.finished
    assert again.result == {"perplexity": 3.5}
    assert json.loads((again.folder / "config.json").read_text()) == {"steps": 3, "where": "/somewhere"}
    assert (again.folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_another_configuration_starts_anew_and_keeps_the_old_model(tmp_path):
    finished(tmp_path, 3).sample("Soup is warm.")
    other = Run(tmp_path, Asked(4))
    assert not other.finished
    assert other.resume() is None
    assert other.losses() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "losses.jsonl", "model"]
    assert (other.model / "weights").read_text() == "of 3"


def test_a_folder_half_emptied_is_no_finished_run(tmp_path):
    finished(tmp_path, 3)
    (tmp_path / "config.json").unlink()  # as a kill leaves it: the configuration goes first and comes last
    assert not Run(tmp_path, Asked(3)).finished


def test_a_checkpoint_gives_back_every_tensor_and_number(tmp_path):
    run = Run(tmp_path, Asked(9))
    tensors = {"a": torch.tensor([1.5, -2.0]), "b/c": torch.tensor(3, dtype=torch.int64)}
    run.save(Checkpoint(1, {}, {}))
    run.save(Checkpoint(2, tensors, {"seconds": 0.25, "sums": {"total": 7.0}}))
    found = Run(tmp_path, Asked(9)).resume()
    assert found is not None
    assert (found.step, found.state) == (2, {"seconds": 0.25, "sums": {"total": 7.0}})
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["checkpoint.safetensors"]


def test_losses_after_the_checkpoint_are_forgotten_and_a_torn_line_is_skipped(tmp_path):
    run = Run(tmp_path, Asked(9))
    for step in (2, 4, 6):
        run.log(step, {"total": 1 / step})
    run.save(Checkpoint(4, {}, {}))
    with (tmp_path / "losses.jsonl").open("a") as stream:
        stream.write('{"step": 8, "tot')
    assert [line["step"] for line in run.losses()] == [2, 4, 6]
    run.resume()
    assert run.losses() == [{"step": 2, "total": 0.5}, {"step": 4, "total": 0.25}]


def test_what_is_computed_once_is_kept(tmp_path):
    calls = []
    for _ in range(2):
        kept = Run(tmp_path, Asked(9)).once("before", lambda: calls.append(1) or {"perplexity": 12.0})
        assert kept == {"perplexity": 12.0}
    assert calls == [1]


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path):
    run = Run(tmp_path, Asked(9))
    run.save(Checkpoint(1, {"a": torch.ones(1)}, {}))
    with pytest.raises(TypeError):
        run.save(Checkpoint(2, {"a": torch.zeros(1)}, {"odd": object()}))
    found = run.resume()
    assert found is not None and found.step == 1
