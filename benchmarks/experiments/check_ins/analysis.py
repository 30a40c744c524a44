"""From ranks of check-ins to findings: every baseline and ranker on the same check-ins of the test part, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from benchmarks.experiments import statistics
from benchmarks.experiments.analysis import Difference, Findings, Row, computed, cost
from benchmarks.experiments.check_ins.cells import Store
from benchmarks.experiments.check_ins.log import SLICES, Ranks, gains
from benchmarks.experiments.check_ins.rules import Asked, Question, chosen
from benchmarks.experiments.check_ins.world import CheckInWorld, Prepared, load
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.statistics import RESAMPLES

Gains = Mapping[Question, np.ndarray]  # what each of B check-ins adds, (B,); NaN for one that is not in the slice


def analyse(made: Experiment, rules: Sequence[str], store: Store) -> Findings:
    """Raises ValueError where a cell was not computed.

    Args:
        rules: names of baselines; each is asked with the variant that was best on the validation part.
    """
    world = next(iter(made.cells.values()))[0].world
    assert isinstance(world, CheckInWorld)
    prepared = load(world, store.places)
    told: dict[str, list[Gains]] = {name: [of_rule] for name, of_rule in _rules(prepared, rules).items()}
    told |= {arm: [all_gains(computed(store.ranks(cell), cell)) for cell in cells] for arm, cells in made.cells.items()}
    user_B = prepared.log.user[prepared.rows("test")]
    users = int(user_B.max()) + 1
    times_KU = np.random.default_rng(world.seed).multinomial(users, np.full(users, 1 / users), size=RESAMPLES)
    results = {arm: [computed(store.result(cell), cell) for cell in cells] for arm, cells in made.cells.items()}
    return Findings(
        rows=tuple(_rows(told, made)),
        differences=tuple(
            _difference(c, (at, metric), told, user_B, times_KU)
            for c in made.comparisons
            for at, metric in product(c.slices, made.compared)
        ),
        costs=tuple(cost(arm, of_seeds) for arm, of_seeds in results.items()),
        facts={"rankers": {"venues found": float(np.mean([r.found for of in results.values() for r in of]))}},
    )


def all_gains(ranks: Ranks) -> Gains:
    """The gains of ranks, for every slice and measure."""
    found: dict[Question, np.ndarray] = {}
    for at in SLICES:
        rank = ranks.of(at)
        for metric, gain in gains(np.nan_to_num(rank, nan=np.inf)).items():
            found[at, metric] = np.where(np.isnan(rank), np.nan, gain)
    return found


def resampled(gain_B: np.ndarray, user_B: np.ndarray, times_KU: np.ndarray) -> np.ndarray:
    """The mean gain under K resamples of users, (K,). `times_KU`: how often each user is drawn."""
    there = ~np.isnan(gain_B)
    users = times_KU.shape[1]
    total_U = np.bincount(user_B[there], weights=gain_B[there], minlength=users)
    count_U = np.bincount(user_B[there], minlength=users)
    means: np.ndarray = (times_KU @ total_U) / np.maximum(times_KU @ count_U, 1)
    return means


def _rules(prepared: Prepared, names: Sequence[str]) -> dict[str, Gains]:
    """Each baseline on the test part, by the variant that the validation part chose for the slice and measure."""
    valid, test = (Asked(prepared.log, prepared.rows(part)) for part in ("valid", "test"))
    best = chosen(valid, names)
    return {
        name: {question: all_gains(test.ranks(variant))[question] for question, variant in best[name].items()}
        for name in names
    }


def _rows(told: Mapping[str, Sequence[Gains]], made: Experiment) -> Iterator[Row]:
    for at, name, metric in product(made.slices, told, made.measures):
        values = [float(np.nanmean(of_seed[at, metric])) for of_seed in told[name]]
        mean = statistics.over_seeds(values)
        yield Row(
            dataset="foursquare",
            slice=at,
            model=name,
            metric=metric,
            values=tuple(values),
            mean=mean.mean,
            low=mean.low,
            high=mean.high,
        )


def _difference(
    comparison: Comparison,
    question: Question,
    told: Mapping[str, Sequence[Gains]],
    user_B: np.ndarray,
    times_KU: np.ndarray,
) -> Difference:
    """Ours less the reference; what has no seeds is the same for each."""
    ours = [of_seed[question] for of_seed in told[comparison.ours]]
    reference = [of_seed[question] for of_seed in told[comparison.reference]]
    reference = reference * (len(ours) // len(reference))
    values = [[float(np.nanmean(gain)) for gain in of] for of in (ours, reference)]
    drawn = [np.stack([resampled(gain, user_B, times_KU) for gain in of]) for of in (ours, reference)]
    absolute, relative = (
        statistics.paired(values[0], values[1], (drawn[0], drawn[1]), relative=of, one_log=True) for of in (False, True)
    )
    return Difference(
        dataset="foursquare",
        slice=question[0],
        metric=question[1],
        ours=comparison.ours,
        reference=comparison.reference,
        values=tuple(a - b for a, b in zip(*values, strict=True)),
        absolute=absolute,
        relative=relative,
        margin=comparison.margin,
        verdict=statistics.verdict(relative, comparison.margin),
    )
