"""One point of the scale grid: a ranker for so many scenarios and users, trained for some steps and asked.

Rows are generated, with vectors drawn at random in place of a language model's. Every scenario and every user is as
likely as any other, which is the worst case for layers of each scenario's own: few rows of many scenarios in each
batch. Quality is not looked at. One process measures one point, so that its largest memory is the point's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiments.measures import CANDIDATES, parameters
from benchmarks.report import peak_mib
from trainers.batch import Batch
from trainers.batches import InMemory
from trainers.bundle import spaces_of
from trainers.knowledge import SCENARIO_KNOWLEDGE, USER_KNOWLEDGE
from trainers.loop import Optimizer
from trainers.losses import ranking_loss
from trainers.models.embedding import InputSizes
from trainers.models.ranker import Ranker
from trainers.rank import CHUNK_ROWS
from trainers.recipes import Recipe

VECTOR_WIDTH = 576  # of the embedded language model's states
ATTRIBUTES, KINDS, POIS, NUMBERS, RECENT = (10, 10), (60, 400), 10_000, 20, 20
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a point is measured: at most so many repeats, and about so many seconds, of each kind."""

    steps: int = 30
    requests: int = 300
    bulks: int = 5
    seconds: float = 2.5


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured."""

    recipe: Recipe
    scenarios: int
    users: int
    effort: Effort = field(default_factory=Effort)

    @property
    def sizes(self) -> InputSizes:
        """A row holds scenario, user and two attributes of the user, POI and two kinds of it; id 0 never occurs."""
        counts = (self.scenarios, self.users, *ATTRIBUTES, POIS, *KINDS)
        return InputSizes(
            cardinalities=tuple(count + 1 for count in counts),
            user_fields=2 + len(ATTRIBUTES),
            numbers=NUMBERS,
            scene_cardinalities=(),
            text_spaces=(USER_KNOWLEDGE, SCENARIO_KNOWLEDGE),
            scene_space="",
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a point came to.

    Attributes:
        train_rows_per_second: batches cut, forward, backward and optimiser, from the median step.
        step_ms, optimizer_ms: the median step, and of it the clipping and the optimiser.
        first_ms: a ranker's first request, which generates all scenarios' layers.
        p50_ms, p99_ms: of scoring one request of 200 candidates, each of another user.
        bulk_rows_per_second: of scoring rows of all users and scenarios, `CHUNK_ROWS` at a time.
        parameters: trained ones. vectors_mib: the vectors in memory, which are as large in a bundle. kept_mib: the
            scenarios' generated layers. peak_mib: largest memory of the process; start_mib: before it made anything.
    """

    train_rows_per_second: float
    step_ms: float
    optimizer_ms: float
    first_ms: float
    p50_ms: float
    p99_ms: float
    bulk_rows_per_second: float
    parameters: int
    vectors_mib: float
    kept_mib: float
    peak_mib: float
    start_mib: float


def measure(point: Point) -> Found:
    """Build, train and ask one ranker, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start_mib = peak_mib()
    matrices = vectors(point) if spaces_of(point.recipe.model) else {}
    ranker = Ranker(point.recipe.model, point.sizes, matrices)
    step_ms, optimizer_ms = _train(ranker, point)
    ranker.eval()
    asked = [request(point, seed) for seed in range(20)]
    turns = cycle(asked)
    with torch.inference_mode():
        first_ms = _milliseconds(lambda: ranker(asked[0]))
        each_ms = [_milliseconds(lambda: ranker(next(turns))) for _ in _repeats(point, point.effort.requests)]
        whole = rows_of(point, CHUNK_ROWS, seed=1)
        bulk_ms = statistics.median(_milliseconds(lambda: ranker(whole)) for _ in _repeats(point, point.effort.bulks))
    return Found(
        train_rows_per_second=1e3 * point.recipe.fit.batch_size / step_ms,
        step_ms=step_ms,
        optimizer_ms=optimizer_ms,
        first_ms=first_ms,
        p50_ms=float(np.percentile(each_ms, 50)),
        p99_ms=float(np.percentile(each_ms, 99)),
        bulk_rows_per_second=1e3 * CHUNK_ROWS / bulk_ms,
        parameters=parameters(ranker),
        vectors_mib=sum(map(_mib, matrices.values())),
        kept_mib=_kept_mib(ranker),
        peak_mib=peak_mib(),
        start_mib=start_mib,
    )


def _train(ranker: Ranker, point: Point) -> tuple[float, float]:
    """Median milliseconds of a step as `trainers.loop` takes it, and of its clipping and optimiser."""
    fit, loss = point.recipe.fit, point.recipe.loss
    rows = rows_of(point, (point.effort.steps + WARM_UP) * fit.batch_size, seed=0)
    ranker.fit_vectors(rows)
    ranker.train()
    optimizer = Optimizer(ranker, replace(fit, schedule="constant"), 1)
    batches = InMemory(rows).epoch(fit.batch_size, torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.step(lambda batch: ranking_loss(ranker(batch), batch, loss), next(batches))

    def move() -> None:  # with the gradients of the last step
        nn.utils.clip_grad_norm_(optimizer.dense, fit.clip)
        for half in optimizer.halves:
            half.step()

    steps = [_milliseconds(step) for _ in _repeats(point, point.effort.steps)]
    moves = [_milliseconds(move) for _ in range(3)]
    return statistics.median(steps[WARM_UP:]), statistics.median(moves)


def _repeats(point: Point, most: int) -> Iterator[int]:
    """0, 1, ... until time is up, and a few more than those that warm up at least."""
    end = time.perf_counter() + point.effort.seconds
    for at in range(most + WARM_UP):
        if at > WARM_UP + 2 and time.perf_counter() > end:
            return
        yield at


def vectors(point: Point) -> dict[str, Tensor]:
    """Random vectors of all users and all scenarios; row 0 is missing."""
    counts = {USER_KNOWLEDGE: point.users, SCENARIO_KNOWLEDGE: point.scenarios}
    made = {space: torch.randn(count + 1, VECTOR_WIDTH) for space, count in counts.items()}
    for matrix in made.values():
        matrix[0] = 0.0
    return made


def rows_of(point: Point, rows: int, seed: int) -> Batch:
    """Rows of users, scenarios and POIs that are equally likely, each row a request of its own."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(1, c, (rows,), generator=rng) for c in point.sizes.cardinalities], dim=1)
    click = (torch.rand(rows, generator=rng) < 0.2).float()
    nothing = torch.zeros((1, 0), dtype=torch.int64)
    return Batch(
        categorical_BF=ids,
        numeric_BD=torch.randn(rows, NUMBERS, generator=rng),
        recent_poi_BN=torch.randint(1, POIS + 1, (rows, RECENT), generator=rng),
        recent_age_BN=torch.rand(rows, RECENT, generator=rng),
        text_row_BK=ids[:, [1, 0]],  # a vector for every user and every scenario
        scene_of_row_B=torch.zeros(rows, dtype=torch.int64),
        scene_id_US=nothing,
        scene_row_US=nothing,
        click_B=click,
        order_B=click * (torch.rand(rows, generator=rng) < 0.3),
    )


def request(point: Point, seed: int) -> Batch:
    """Candidates of one user in one scenario."""
    batch = rows_of(point, CANDIDATES, seed=1000 + seed)
    user = point.sizes.user_fields
    batch.categorical_BF[:, :user] = batch.categorical_BF[0, :user]
    return replace(batch, text_row_BK=batch.categorical_BF[:, [1, 0]])


def _kept_mib(ranker: Ranker) -> float:
    """MiB of the scenarios' generated layers."""
    level = ranker.knowledge and ranker.knowledge.scenario_level
    if not level or level.kept is None:
        return 0.0
    layers = level.kept.layers
    return sum(map(_mib, [*layers.biases_UI, *(weight for of_one in layers.weights_UIO for weight in of_one)]))


def _mib(tensor: Tensor) -> float:
    return tensor.nbytes / 2**20


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)
