"""From computed cells to what an experiment says: means, intervals, paired differences, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np

from benchmarks.experiments import resamples, statistics
from benchmarks.experiments.cells import Cell, Result, Store
from benchmarks.experiments.experiment import AUCS, Comparison, Experiment
from benchmarks.experiments.slices import BOOTSTRAPPED
from benchmarks.experiments.statistics import Interval, Verdict
from benchmarks.experiments.worlds import plain_hash

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm, slice and measure: the value of each seed (None where the slice cannot tell it), mean and interval."""

    dataset: str
    slice: str
    model: str
    metric: str
    values: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison on one slice and measure: absolute and relative, each with the wider interval."""

    dataset: str
    slice: str
    metric: str
    ours: str
    reference: str
    values: tuple[float, ...]
    absolute: Interval
    relative: Interval
    margin: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one arm costs: means over seeds; `alignment` is the loss of guidance in training."""

    model: str
    parameters: float
    train_seconds: float
    rows_per_second: float
    epochs: float
    inference_ms: float
    inference_mflops: float
    peak_mib: float
    alignment: float | None


class Costly(Protocol):
    """A result with what `Cost` is the mean of."""

    @property
    def alignment(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that an experiment says."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    costs: tuple[Cost, ...]
    facts: Mapping[str, Mapping[str, float]]


def analyse(experiment: Experiment, store: Store) -> Findings:
    """Raises ValueError where a cell was not computed, or cells read different weights of a model of one name."""
    results = {arm: [computed(store.result(cell), cell) for cell in cells] for arm, cells in experiment.cells.items()}
    _refuse_mixed([result for of in results.values() for result in of])
    rows = [
        _row(experiment, arm, at, metric, [value(result, at, metric) for result in results[arm]])
        for at in experiment.slices
        for arm in experiment.arms
        for metric in experiment.measures
    ]
    differences = []
    for c in experiment.comparisons:
        for at in c.slices:
            for metric in experiment.compared:
                ours, reference = ([value(r, at, metric) for r in results[arm]] for arm in (c.ours, c.reference))
                if None not in (*ours, *reference):
                    differences.append(_difference(experiment, store, c, (at, metric), (ours, reference)))  # type: ignore[arg-type]
    costs = tuple(cost(arm, results[arm]) for arm in experiment.arms)
    facts = experiment.facts(store.places) if experiment.facts else {}
    return Findings(rows=tuple(rows), differences=tuple(differences), costs=costs, facts=facts)


def _refuse_mixed(results: Sequence[Result]) -> None:
    read: dict[tuple[str, str], str] = {}
    for result in results:
        for model, spaces in result.language_models.items():
            for space, version in spaces.items():
                if read.setdefault((model, space), version) != version:
                    raise ValueError(
                        f"some cells read the {space} of {model} in version {version}, others in "
                        f"{read[model, space]}: remove those of one version from the cells and run the command again"
                    )


def value(result: Result, at: str, metric: str) -> float | None:
    """One number of a cell; None where the slice is empty or cannot tell it."""
    return result.metrics.get(at, {}).get(metric)


def computed(found: T | None, cell: Cell) -> T:
    """What was computed of a cell. Raises ValueError where nothing was."""
    if found is None:
        raise ValueError(f"cell {cell.hash} was not computed; run the experiment again")
    return found


def _row(experiment: Experiment, arm: str, at: str, metric: str, values: Sequence[float | None]) -> Row:
    told = [v for v in values if v is not None]
    interval = statistics.over_seeds(told) if told else None
    return Row(
        dataset=experiment.cells[arm][0].world.name,
        slice=at,
        model=arm,
        metric=metric,
        values=tuple(values),
        mean=interval.mean if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
    )


def _difference(
    experiment: Experiment,
    store: Store,
    comparison: Comparison,
    place: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
) -> Difference:
    at, metric = place
    drawn = None
    if experiment.resampled and metric in AUCS and at in BOOTSTRAPPED:
        arms = (experiment.cells[arm] for arm in (comparison.ours, comparison.reference))
        ours, reference = (
            np.stack([resamples.replicates(cell, store.places, at, metric) for cell in cells]) for cells in arms
        )
        drawn = (ours, reference)
    one_log = len({plain_hash(cell.world) for cell in experiment.cells[comparison.ours]}) == 1
    absolute, relative = (statistics.paired(*values, drawn, relative=of, one_log=one_log) for of in (False, True))
    return Difference(
        dataset=experiment.cells[comparison.ours][0].world.name,
        slice=at,
        metric=metric,
        ours=comparison.ours,
        reference=comparison.reference,
        values=tuple(a - b for a, b in zip(*values, strict=True)),
        absolute=absolute,
        relative=relative,
        margin=comparison.margin,
        verdict=statistics.verdict(relative, comparison.margin),
    )


def cost(arm: str, results: Sequence[Costly]) -> Cost:
    """Means over the results of an arm, which have all fields of `Cost`."""
    means = {
        f.name: [getattr(r, f.name) for r in results] for f in fields(Cost) if f.name not in ("model", "alignment")
    }
    aligned = [r.alignment for r in results if r.alignment is not None]
    numbers = {name: float(np.mean(of_seeds)) for name, of_seeds in means.items()}
    return Cost(model=arm, **numbers, alignment=float(np.mean(aligned)) if aligned else None)
