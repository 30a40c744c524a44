"""The only training loop: batches and an objective in, the best weights and the history of losses out.

It knows no model: an objective maps a batch to `Losses`, a measure maps the network as it stands to numbers of the
validation part. For one seed and one number of threads every run gives the same bits.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trainers.batch import Batch
from trainers.batches import Batches
from trainers.losses import Losses

Progress = Callable[[int, int, str], None]  # steps done, steps planned, what to show beside them
Measure = Callable[[], Mapping[str, float]]  # numbers of the validation part, `FitConfig.watch` among them


class TrainingError(ValueError):
    """Training cannot go on; the message says at which step, and why."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train.

    Args:
        epochs: at most; training ends earlier after `patience` epochs without a better validation score.
        learning_rate: of Adam (decoupled weight decay), at its highest; it rises over `warmup_steps`.
        schedule: after that "constant", or down to zero at the last planned epoch by a "cosine".
        weight_decay: for all but embedding tables, whose rare rows decay would erase.
        table_decay: for embedding tables; not available for tables large enough to have sparse gradients.
        clip: longest gradient of a step, over all weights but tables large enough to have sparse gradients.
        watch: the validation measure that early stopping maximises; "auc" is the mean of click's and order's.
    """

    epochs: int = 5
    batch_size: int = 1024
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    table_decay: float = 0.0
    clip: float = 10.0
    patience: int = 2
    watch: Literal["auc", "click_auc", "order_auc", "log_likelihood"] = "auc"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience) < 1 or self.learning_rate <= 0:
            raise ValueError(f"epochs, batch size, patience and learning rate must be positive, got {self}")


@dataclass(frozen=True)
class Epoch:
    """Mean training losses and the validation measures after one pass."""

    losses: Mapping[str, float]
    measures: Mapping[str, float]
    score: float
    seconds: float


@dataclass(frozen=True)
class History:
    """All epochs, and which one's weights were kept."""

    epochs: tuple[Epoch, ...]
    best: int
    rows_per_second: float


def fit(
    network: nn.Module,
    objective: Callable[[Batch], Losses],
    train: Batches,
    measure: Measure,
    config: FitConfig,
    *,
    seed: int,
    progress: Progress = lambda done, planned, note: None,
) -> History:
    """Train `network` in place and leave it in eval mode with the weights of the best epoch.

    Args:
        objective: the losses of a batch; called in training mode.
        measure: called in eval mode after each epoch.
        seed: of the order of rows and of dropout; the caller's random state is left as it was.
    Raises:
        TrainingError: a loss or a score that is not finite, an epoch whose losses are all exactly zero, or no rows.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _fit(network, objective, train, measure, config, torch.Generator().manual_seed(seed), progress)


def _fit(
    network: nn.Module,
    objective: Callable[[Batch], Losses],
    train: Batches,
    measure: Measure,
    config: FitConfig,
    generator: torch.Generator,
    progress: Progress,
) -> History:
    planned = config.epochs * train.steps(config.batch_size)
    optimizer = Optimizer(network, config, planned)
    epochs: list[Epoch] = []
    best, best_weights, rows, busy = -1, {}, 0, 0.0
    for _ in range(config.epochs):
        started = time.perf_counter()
        network.train()
        totals: dict[str, float] = defaultdict(float)
        seen = 0
        for batch in train.epoch(config.batch_size, generator):
            losses = optimizer.step(objective, batch)
            for name, value in losses.items():
                totals[name] += value * len(batch)
            seen += len(batch)
            progress(optimizer.steps, planned, _note(epochs))
        if not seen:
            raise TrainingError("the training part has no rows; widen the time range of the pull")
        if totals["total"] == 0.0:
            raise TrainingError(
                f"epoch {len(epochs)}: all losses are exactly zero: nothing is compared (labels of one kind, weights "
                "of zero, or lists without a click)"
            )
        seconds = time.perf_counter() - started
        rows, busy = rows + seen, busy + seconds
        network.eval()
        with torch.inference_mode():
            measures = measure()
        score = _finite(measures.get(config.watch, math.nan), config.watch, len(epochs))
        epochs.append(Epoch({name: value / seen for name, value in totals.items()}, measures, score, seconds))
        if best < 0 or score > epochs[best].score:
            best, best_weights = len(epochs) - 1, copy.deepcopy(network.state_dict())
        elif len(epochs) - 1 - best >= config.patience:
            break
    network.load_state_dict(best_weights)
    network.eval()
    return History(tuple(epochs), best, rows / busy)


class Optimizer:
    """Adam in two halves: decoupled weight decay for dense parameters, SparseAdam for tables with sparse gradients.

    A dense optimiser reads and writes every row of a table at every step; a table of a million ids would take longer
    than the network. SparseAdam touches the rows of the batch only.
    """

    def __init__(self, network: nn.Module, config: FitConfig, planned_steps: int) -> None:
        tables = [m for m in network.modules() if isinstance(m, nn.Embedding)]
        sparse = [m.weight for m in tables if m.sparse]
        small = [m.weight for m in tables if not m.sparse]
        taken = {id(p) for p in sparse + small}
        dense = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
        if sparse and config.table_decay:
            raise ValueError("table_decay cannot be used with tables this large: their gradients are sparse")
        groups = [
            {"params": dense, "weight_decay": config.weight_decay},
            {"params": small, "weight_decay": config.table_decay},
        ]
        self.halves: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, foreach=True)
        ]
        if sparse:
            self.halves.append(torch.optim.SparseAdam(sparse, lr=config.learning_rate))
        self.dense = dense + small
        self.config = config
        self.planned = max(planned_steps, 1)
        self.steps = 0

    def step(self, objective: Callable[[Batch], Losses], batch: Batch) -> dict[str, float]:
        """One step on one batch; the values of its losses. Raises TrainingError for a loss that is none."""
        for half in self.halves:
            half.zero_grad(set_to_none=True)
            for group in half.param_groups:
                group["lr"] = self.config.learning_rate * self._pace()
        losses = objective(batch)
        values = {"total": float(losses.total.detach()), **{name: float(v) for name, v in losses.parts.items()}}
        if not math.isfinite(values["total"]):
            raise TrainingError(f"step {self.steps}: the loss is {values}: a learning rate too high, or broken inputs")
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.dense, self.config.clip)
        for half in self.halves:
            half.step()
        self.steps += 1
        return values

    def _pace(self) -> float:
        """The share of the highest learning rate at this step, 0 .. 1."""
        warm = min(1.0, (self.steps + 1) / max(self.config.warmup_steps, 1))
        if self.config.schedule == "constant":
            return warm
        return warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.steps / self.planned)))


def _finite(score: float, name: str, epoch: int) -> float:
    if not math.isfinite(score):
        raise TrainingError(
            f"epoch {epoch}: the validation score {name!r} is {score}; it needs clicks and non-clicks in the "
            "validation part"
        )
    return score


def _note(epochs: list[Epoch]) -> str:
    return f"epoch {len(epochs) + 1}" + (f", last score {epochs[-1].score:.4f}" if epochs else "")
