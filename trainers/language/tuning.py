"""The loop that tunes a language model: steps that can be interrupted anywhere, on one process or on many.

A step is a pure function of the weights, the optimiser and the step's number: its batch and its random numbers are
drawn from (seed, step, rank). That is why a run that was killed and started again ends where one that ran through does.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainers.language.model import fastest_dtype, threads_of
from trainers.language.processes import Processes
from trainers.language.run_folder import Checkpoint, Run
from trainers.loop import TrainingError
from trainers.losses import Losses

B = TypeVar("B")
Progress = Callable[[str, int, int], None]  # what, done, total
# What a checkpoint holds of each trained parameter: its weight and what AdamW remembers.
WEIGHT, MOMENTS, STEP = "weight", ("exp_avg", "exp_avg_sq"), "step"


class Task(Protocol[B]):
    """What is learned."""

    def batch(self, step: int, rank: int, world: int) -> B:
        """The share of process `rank` of `world` in the batch of a step; a pure function of these (and of a seed)."""
        ...

    def losses(self, module: nn.Module, batch: B) -> Losses:
        """Losses whose mean over the processes is the loss of the whole batch.

        Use the module as `module(...)` only: its methods do not work where it is sharded.
        """
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A task that knows how many tokens a batch has; then tokens/s are logged."""

    def tokens(self, batch: Any) -> int: ...


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to tune.

    Args:
        steps: in all.
        learning_rate: of AdamW, at its highest: it rises over `warmup_steps` and falls to zero by a cosine.
        learning_rates: factors for parameters whose dotted name has this part, such as "heads" or "layers.29".
        weight_decay: for matrices.
        clip: longest gradient of a step.
        log_every: steps whose mean losses make a line in the run folder.
        checkpoint_every: steps after which an interrupted run can go on.
        seed: of dropout and of whatever the task draws.
        precision: of the arithmetic; parameters that are trained are always float32. "auto" is bfloat16 where the
            hardware has it.
        threads: of this process while it tunes; None leaves torch's setting.
        sharding: how the processes of `torchrun` share the work. "ddp": each holds the whole model and gradients are
            averaged; "fsdp": each holds a part of every layer (FSDP2); "none": one process only.
    """

    steps: int
    learning_rate: float = 2e-4
    warmup_steps: int = 20
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 50
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    sharding: Literal["none", "ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.checkpoint_every, self.threads or 1) < 1:
            raise TrainingError(f"steps, log_every, checkpoint_every and threads must be positive, got {self}")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise TrainingError(f"learning rate and clip must be positive, got {self}")


def tune(
    module: nn.Module,
    task: Task[B],
    config: TuneConfig,
    run: Run,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Train, in place, the parameters of `module` that require gradients, from where `run` stands to the last step.

    Where there are several processes, all of them call this and end with the same weights.

    Raises:
        TrainingError: a loss or a gradient that is not finite (the message names the step), nothing to train, trained
            parameters that are not float32, or several processes without sharding.
    """
    processes = Processes.join()
    if processes.size > 1 and config.sharding == "none":
        raise TrainingError(f"{processes.size} processes, but sharding is 'none'; choose 'ddp' or 'fsdp'")
    with threads_of(config.threads), torch.random.fork_rng():
        tuner = _Tuner(module, config, processes)
        start = tuner.resume(run)
        for step in range(start, config.steps):
            tuner.step(task, step)
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                run.log(step + 1, tuner.summary(step))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                tuner.save(run, step + 1)
            progress(f"loss {tuner.last:.3f}", step + 1, config.steps)
        tuner.give_back()


class _Tuner:
    """The module as it is trained, its optimiser, and sums over the steps since the last logged line."""

    def __init__(self, module: nn.Module, config: TuneConfig, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.given = module
        self.sharded = config.sharding == "fsdp" and processes.size > 1
        processes.share([p for p in _trained(module).values()])
        self.module = _shard(copy.deepcopy(module), processes) if self.sharded else module.to(processes.device)
        self.trained = _trained(self.module)
        self.optimizer = torch.optim.AdamW(_groups(self.trained, config), lr=config.learning_rate, foreach=True)
        self.precision = _precision(config.precision, processes.device)
        self.last = math.nan
        self.seconds = 0.0
        self.sums: dict[str, float] = {}  # of losses, and of what `summary` needs, since the last summary
        self.module.train()

    def resume(self, run: Run) -> int:
        """Take up weights and optimiser where the run stands; its step."""
        found = run.resume() or Checkpoint(0, {}, {})
        step, state, known = self.processes.agree((found.step, dict(found.state), set(found.tensors)))
        if step:
            self.seconds, self.sums = state["seconds"], state["sums"]
        for name, parameter in self.trained.items():
            kept = {kind: f"{kind}/{name}" for kind in (WEIGHT, *MOMENTS, STEP) if f"{kind}/{name}" in known}
            tensors = {kind: self._placed(found.tensors.get(key), kind, parameter) for kind, key in kept.items()}
            if tensors:
                parameter.data.copy_(tensors.pop(WEIGHT))
            if tensors:  # AdamW keeps nothing for a parameter that never had a gradient
                self.optimizer.state[parameter] = tensors
        return step

    def step(self, task: Task[B], step: int) -> None:
        """One step of the optimiser."""
        started = time.perf_counter()
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * 1_000_003 + self.processes.rank) % 2**63)
        pace = _pace(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * group["factor"] * pace
        batch = task.batch(step, self.processes.rank, self.processes.size)
        with torch.autocast(self.processes.device.type, self.precision, enabled=self.precision != torch.float32):
            losses = task.losses(self.module, batch)
        parts = {"total": losses.total, **losses.parts}
        values = self.processes.mean({name: float(value.detach()) for name, value in parts.items()})
        self._refuse(step, "loss", values)
        losses.total.backward()  # type: ignore[no-untyped-call]
        if not self.sharded:
            self.processes.average_gradients(list(self.trained.values()))
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.config.clip)
        self._refuse(step, "gradient", {"gradient": float(_whole(norm))})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last = values["total"]
        tokens = task.tokens(batch) if isinstance(task, CountsTokens) else 0
        spent = time.perf_counter() - started
        self.seconds += spent
        fresh = {**values, "/steps": 1, "/tokens": tokens * self.processes.size, "/seconds": spent}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in fresh.items()}

    def summary(self, step: int) -> dict[str, float]:
        """Mean losses since the last summary, with the time so far and the rate."""
        sums, self.sums = self.sums, {}
        steps, tokens, seconds = (sums.pop(f"/{name}") for name in ("steps", "tokens", "seconds"))
        rate = {"tokens_per_second": tokens / seconds} if tokens else {}
        paced = self.config.learning_rate * _pace(step, self.config)
        return {"seconds": self.seconds, **rate, "learning_rate": paced, **{n: v / steps for n, v in sums.items()}}

    def save(self, run: Run, step: int) -> None:
        """All processes take part; the first one writes."""
        tensors = {}
        for name, parameter in self.trained.items():
            for kind, value in {WEIGHT: parameter.data, **self.optimizer.state[parameter]}.items():
                whole = _whole(value)
                if self.processes.first:
                    tensors[f"{kind}/{name}"] = whole.to("cpu", copy=True)
        run.save(Checkpoint(step, tensors, {"seconds": self.seconds, "sums": self.sums}))

    def give_back(self) -> None:
        """The trained weights, into the module that was given."""
        if self.sharded:
            for parameter, part in zip(_trained(self.given).values(), self.trained.values(), strict=True):
                parameter.data.copy_(_whole(part.data))
        self.given.eval()

    def _placed(self, whole: Tensor | None, kind: str, like: nn.Parameter) -> Tensor:
        """What the first process has of a tensor (the others have None), laid out as a parameter is."""
        if kind == STEP:
            count = self.processes.agree(0.0 if whole is None else float(whole))
            return torch.tensor(count)
        tensor = torch.empty(like.shape, dtype=like.dtype) if whole is None else whole
        tensor = tensor.to(self.processes.device)
        if isinstance(like, DTensor):
            return distribute_tensor(tensor, like.device_mesh, like.placements)
        self.processes.share([tensor])
        return tensor

    def _refuse(self, step: int, what: str, values: Mapping[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            raise TrainingError(
                f"step {step}: the {what} is not finite ({values}); lower the learning rate (now "
                f"{self.config.learning_rate}) or look at the texts of this batch"
            )


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients. Raises TrainingError if there are none or one is not float32."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not found:
        raise TrainingError("no parameter requires gradients: there is nothing to train")
    for name, parameter in found.items():
        if parameter.dtype != torch.float32:
            raise TrainingError(
                f"{name} is trained in {parameter.dtype}, whose rounding swallows small steps; load it as float32"
            )
    return found


def _groups(trained: Mapping[str, nn.Parameter], config: TuneConfig) -> list[dict[str, Any]]:
    """Parameters with the same learning rate and decay together. Raises TrainingError for an idle learning rate."""
    unused = [part for part in config.learning_rates if not any(_has(name, part) for name in trained)]
    if unused:
        raise TrainingError(f"learning_rates: no trained parameter has {unused} in its name; there are {[*trained]}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        factors = [factor for part, factor in config.learning_rates.items() if _has(name, part)]
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((math.prod(factors), decay), []).append(parameter)
    return [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]


def _has(name: str, part: str) -> bool:
    """Whether a dotted name has a part: `a.b.c` has `b` and `a.b`, but not `a.` or `bc`."""
    return f".{part}." in f".{name}."


def _shard(module: nn.Module, processes: Processes) -> nn.Module:
    """FSDP2: each layer of the longest list of layers on its own, then the rest."""
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    for layer in max(lists, key=len, default=nn.ModuleList()):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process may hold a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, fastest_dtype(wanted, device.type))
    return dtype


def _pace(step: int, config: TuneConfig) -> float:
    """The share of the highest learning rate at a step, 0 .. 1."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
