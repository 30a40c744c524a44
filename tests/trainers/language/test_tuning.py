"""The tuning loop on a module of a few weights: resuming, schedule, refusals, and two processes against one."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.language.run_folder import Run
from trainers.language.tuning import TuneConfig, tune
from trainers.loop import TrainingError
from trainers.losses import Losses

ROWS, WIDTH = 12, 4
CONFIG = TuneConfig(steps=7, learning_rate=0.05, warmup_steps=2, log_every=2, checkpoint_every=1, precision="float32")
# What `torchrun` runs below: the same training, its weights and losses written by the first process.
PROGRAM = """
import dataclasses, sys
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, {here!r})
from test_tuning import CONFIG, Lines, module, weights
from trainers.language.run_folder import Run
from trainers.language.tuning import tune
for sharding in ("ddp", "fsdp"):
    run = Run(Path({out!r}) / sharding, sharding)
    config = dataclasses.replace(CONFIG, sharding=sharding, checkpoint_every=2)
    for stop in (5, None):
        try:
            net = module(seed=run.processes.rank)
            net.frozen.load_state_dict(module().frozen.state_dict())
            tune(net, Lines(stop=stop), config, run)
        except KeyboardInterrupt:
            pass
    save_file(weights(net), Path({out!r}) / f"{{sharding}}-{{run.processes.rank}}.safetensors")
"""


class Net(nn.Module):
    """A list of layers as language models have, with dropout, and one layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        hidden_BD = self.frozen(x_BD)
        for layer in self.layers:
            hidden_BD = self.dropout(torch.tanh(layer(hidden_BD)))
        return self.head(hidden_BD)[:, 0]


def module(seed: int = 0, dropout: float = 0.0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    net.dropout.p = dropout
    return net


class Lines:
    """Fits the sum of the inputs. Every process takes its slice of the step's rows; `stop` interrupts like a kill."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        if step == self.stop:
            raise KeyboardInterrupt
        x_BD = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(step))
        return x_BD.chunk(world)[rank]

    def losses(self, module: nn.Module, batch: Tensor) -> Losses:
        loss = functional.mse_loss(module(batch), batch.sum(1))
        return Losses(loss, {"error": loss.detach()})

    def tokens(self, batch: Tensor) -> int:
        return len(batch)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and losses of a run that nothing interrupts."""
    net, run = module(), Run(tmp_path_factory.mktemp("through"), "through")
    tune(net, Lines(), CONFIG, run)
    return weights(net), run.losses()


@pytest.mark.parametrize("checkpoint_every", [1, 3])
@pytest.mark.parametrize("kill", range(CONFIG.steps))
def test_a_run_killed_at_any_step_ends_where_one_that_ran_through_does(tmp_path, kill, checkpoint_every):
    config = dataclasses.replace(CONFIG, checkpoint_every=checkpoint_every)
    ends = []
    for name, stop in (("through", None), ("killed", kill)):
        with pytest.raises(KeyboardInterrupt) if stop is not None else pytest.MonkeyPatch.context():
            tune(module(dropout=0.5), Lines(stop=stop), config, Run(tmp_path / name, config))
        # The new process has other initial weights and another random state: both must come from the checkpoint.
        torch.manual_seed(99)
        start = kill // checkpoint_every * checkpoint_every if stop is not None else CONFIG.steps
        net, run = module(seed=start > 0, dropout=0.5), Run(tmp_path / name, config)
        net.frozen.load_state_dict(module().frozen.state_dict())
        tune(net, Lines(), config, run)
        ends.append((weights(net), run.losses()))
    assert difference(ends[0][0], ends[1][0]) < 1e-7
    assert [{n: v for n, v in line.items() if n in ("step", "total", "error")} for line in ends[0][1]] == [
        {n: pytest.approx(v) for n, v in line.items() if n in ("step", "total", "error")} for line in ends[1][1]
    ]


def test_only_what_requires_gradients_is_trained_and_the_loss_falls(through):
    before, (after, losses) = weights(module()), through
    net, batch_BD = module(), Lines().batch(99, 0, 1)
    untrained = Lines().losses(net, batch_BD).total
    net.load_state_dict(after)
    assert Lines().losses(net, batch_BD).total < untrained
    assert [name for name in before if torch.equal(before[name], after[name])] == ["frozen.weight", "frozen.bias"]
    assert [line["step"] for line in losses] == [2, 4, 6, 7]
    assert all(line["tokens_per_second"] > 0 and line["seconds"] > 0 for line in losses)


def test_the_first_step_is_adams_sign_step_at_the_warm_up_rate(tmp_path):
    """AdamW moves every weight by exactly the learning rate against its gradient's sign at its first step."""
    net = module()
    config = dataclasses.replace(CONFIG, steps=1, warmup_steps=4, learning_rates={"head": 0.5, "layers.0": 0.0})
    before = weights(net)
    tune(net, Lines(), config, Run(tmp_path, config))
    moved = {name: (p - before[name]).abs() for name, p in weights(net).items()}
    assert moved["layers.1.weight"].numpy() == pytest.approx(0.05 / 4, rel=1e-3)
    assert moved["head.weight"].numpy() == pytest.approx(0.05 / 4 / 2, rel=1e-3)
    assert moved["layers.0.weight"].max() == moved["frozen.weight"].max() == 0


def test_the_rate_falls_by_a_cosine(through):
    rates = {int(line["step"]): line["learning_rate"] for line in through[1]}
    assert rates[4] == pytest.approx(0.05 * (0.5 + 0.5 * math.cos(math.pi * 3 / 7)))
    assert rates[7] == pytest.approx(0.05 * (0.5 + 0.5 * math.cos(math.pi * 6 / 7)))


@pytest.mark.parametrize(("value", "what"), [(math.nan, "loss"), (1.0, "gradient")])
def test_a_number_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path, value, what):
    """The slope of a square root at zero is infinite, its value is not."""

    class Broken(Lines):
        def losses(self, module: nn.Module, batch: Tensor) -> Losses:
            right = super().losses(module, batch)
            if torch.equal(batch, self.batch(3, 0, 1)):
                out = module(batch).sum()
                return Losses(value + (out - out.detach()).sqrt(), {})
            return right

    net, run = module(), Run(tmp_path, "broken")
    with pytest.raises(TrainingError, match=f"step 3: the {what} is not finite"):
        tune(net, Broken(), CONFIG, run)
    found = run.resume()
    assert found is not None and found.step == 3  # the weights before it


def test_impossible_settings_are_refused(tmp_path):
    run = Run(tmp_path, "refused")
    with pytest.raises(TrainingError, match="nothing to train"):
        tune(module().requires_grad_(False), Lines(), CONFIG, run)
    with pytest.raises(TrainingError, match=r"head\.weight is trained in torch\.bfloat16"):
        net = module()
        net.head.to(torch.bfloat16)
        tune(net, Lines(), CONFIG, run)
    with pytest.raises(TrainingError, match=r"no trained parameter has \['heads'\] in its name"):
        tune(module(), Lines(), dataclasses.replace(CONFIG, learning_rates={"heads": 2.0}), run)
    with pytest.raises(TrainingError, match="must be positive"):
        TuneConfig(steps=0)


def test_progress_and_the_callers_random_state(tmp_path):
    seen: list[tuple[str, int, int]] = []
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    net = nn.Linear(WIDTH, 1)
    torch.manual_seed(5)
    tune(nn.Sequential(net, nn.Flatten(0)), Lines(), CONFIG, Run(tmp_path, "seen"), lambda *a: seen.append(a))
    assert torch.equal(torch.rand(1), expected)
    assert [(done, total) for _, done, total in seen] == [(i + 1, 7) for i in range(7)]
    assert seen[-1][0].startswith("loss ")


def test_two_processes_train_as_one_does_and_resume(through, tmp_path):
    """Data parallel and sharded: the processes start from different weights, and are stopped before step 5 once."""
    from safetensors.torch import load_file

    script = tmp_path / "train.py"
    script.write_text(PROGRAM.format(here=str(Path(__file__).parent), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    expected, losses = through
    for sharding in ("ddp", "fsdp"):
        for rank in range(2):
            assert difference(load_file(tmp_path / f"{sharding}-{rank}.safetensors"), expected) < 1e-5
        lines = Run(tmp_path / sharding, sharding).losses()
        assert [line["total"] for line in lines] == pytest.approx([line["total"] for line in losses], abs=1e-5)
