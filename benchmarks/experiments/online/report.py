"""What the online experiment leaves behind: JSON, Markdown with what follows from it, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.cells import rounded, staged, write_json
from benchmarks.experiments.online.days import ARMS
from benchmarks.experiments.online.measured import MEASURES, REFERENCE, Found, How, Measure
from benchmarks.experiments.online.off_policy import ESTIMATORS, Estimator
from benchmarks.experiments.places import Places
from benchmarks.experiments.plots import NEUTRAL, OURS
from benchmarks.experiments.statistics import NORMAL_QUANTILE, Interval, over_seeds, verdict, wider
from benchmarks.experiments.tables import table
from trainers.plain import to_plain

NAMES: Mapping[Measure, str] = {"clicks": "clicks", "orders": "orders", "gmv": "GMV, euros"}
PAPER: Mapping[Measure, float] = {"clicks": 0.025, "gmv": 0.012}  # LARR online, Wan et al. 2024; baseline not told
HOWS: Mapping[How, str] = {
    "observed": "observed, each arm's own users",
    "drawn": "expected of all users, orders drawn",
    "certain": "expected of all users, orders of the scores",
}
NOMINAL = 0.95
WAYS = """\
Observed: what users of each arm did, as an experimenter sees it. Expected: the true chances of what each arm answered
in the same sessions, whoever saw it, which only a simulation knows; its intervals are narrow because arms meet the same
sessions. Orders drawn: as served, exploring. Orders of the scores: the same answers without exploring. Arms explore
with one temperature; one whose scores are wider apart strays less, so rankers are best compared without. Of the logit
of a click the first position adds .83 more than the tenth, times .25 to 1.35 by scenario. CTR is clicks over ten."""
ESTIMATED = """\
From the log of one arm's users alone: their answers with propensities, what the other arm would have answered, clicks
and orders. Covered: of intervals of 95 % over logs drawn again and again from the same sessions, whose chances are
known, how many hold the truth, over all pairs of arms; in brackets the binomial interval of that rate; worst: of a
pair. Here: of the intervals from the logs that were really written. Width: half an interval, of the truth."""


def write(name: str, told: Sequence[str], found: Sequence[Found], places: Places) -> str:
    """Write the three files and return the text of the second.

    Args:
        told: lines about the run. found: of each seed.
    """
    text = markdown(name, told, found)
    write_json(places.results / f"{name}.json", rounded({"about": list(told), "seeds": [to_plain(f) for f in found]}))
    with staged(places.results / f"{name}.png") as file:
        draw(found, file)
    with staged(places.results / f"{name}.md") as file:
        file.write_text(text)
    return text


def markdown(name: str, told: Sequence[str], found: Sequence[Found]) -> str:
    lines = [f"# {name}", "", *told, "", "## What follows", "", *(f"- {line}" for line in follows(found))]
    lines += ["", "## A session", "", WAYS, "", *_means(found)]
    lines += ["", f"## Against {REFERENCE}", "", *_lifts(found)]
    lines += ["", "## Expected clicks of a session, orders drawn, day by day", "", *_days(found)]
    lines += ["", "## What logs alone foretell", "", ESTIMATED, "", *_coverage(found)]
    lines += ["", f"Clicks a session, doubly robust; truth in brackets; seed by seed ({len(found)}):", ""]
    lines += _pairs(found, "clicks", "DR")
    stages = ", ".join(f"{stage} {np.mean([f.seconds[stage] for f in found]):.0f} s" for stage in found[0].seconds)
    rows = np.mean([f.rows for f in found])
    lines += [
        "",
        f"A city: {np.mean([f.users for f in found]):,.0f} users came, {rows:,.0f} rows of feedback; {stages}.",
    ]
    return "\n".join(lines) + "\n"


def over_all(values: Sequence[float], errors: Sequence[float]) -> Interval:
    """The mean over seeds with the wider of its intervals: over seeds, and over the users of each."""
    seeds = over_seeds(values)
    half = NORMAL_QUANTILE * float(np.hypot.reduce(errors)) / len(errors)
    return wider(seeds, Interval(mean=seeds.mean, low=seeds.mean - half, high=seeds.mean + half, by="users"))


def lift(found: Sequence[Found], arm: str, how: How, measure: Measure) -> Interval:
    """An arm against the reference, relative."""
    of_seeds = [_one(f.lifts, arm, how, measure) for f in found]
    return over_all([one.value for one in of_seeds], [one.error for one in of_seeds])


def mean(found: Sequence[Found], arm: str, how: How, measure: Measure) -> Interval:
    of_seeds = [_one(f.means, arm, how, measure) for f in found]
    return over_all([one.value for one in of_seeds], [one.error for one in of_seeds])


def binomial(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927).

    >>> [round(end, 3) for end in binomial(95, 100)]
    [0.888, 0.978]
    """
    z2, rate = NORMAL_QUANTILE**2, hits / of
    middle = (rate + z2 / (2 * of)) / (1 + z2 / of)
    half = NORMAL_QUANTILE / (1 + z2 / of) * (rate * (1 - rate) / of + z2 / (4 * of * of)) ** 0.5
    return middle - half, middle + half


def follows(found: Sequence[Found]) -> list[str]:
    """Sentences that numbers decide."""
    said = {"above": "ahead of", "below": "behind", "undecided": "not told from", "equivalent": "as good as"}
    lines = []
    for arm in ARMS:
        if arm == REFERENCE:
            continue
        for how in ("observed", "certain"):
            told = []
            for measure in MEASURES:
                change = lift(found, arm, how, measure)
                told.append(f"{measure} {_percent(change)} ({said[verdict(change)]} it)")
            lines.append(f"{arm} against {REFERENCE}, {HOWS[how]}: {', '.join(told)}.")
    costs = []
    for arm in ARMS:
        drawn, certain = (mean(found, arm, how, "clicks").mean for how in ("drawn", "certain"))
        costs.append(f"{arm} {drawn / certain - 1:+.1%}")
    lines.append(f"What exploring costs in clicks: {', '.join(costs)}.")
    for name in ESTIMATORS:
        of_one = [f for seed in found for f in seed.foretold if f.estimator == name]
        hits, logs = sum(f.covered for f in of_one), sum(f.logs for f in of_one)
        low, high = binomial(hits, logs)
        lines.append(f"{name}: intervals of 95 % hold the truth in {hits / logs:.1%} [{low:.1%}, {high:.1%}] of logs.")
    return lines


def _one(rows: Sequence[Any], arm: str, how: How, measure: Measure) -> Any:
    """The one row of these, a `Mean` or a `Lift`."""
    return next(row for row in rows if (row.arm, row.how, row.measure) == (arm, how, measure))


def _means(found: Sequence[Found]) -> list[str]:
    body = []
    for how, name in HOWS.items():
        for arm in ARMS:
            sessions = sum(_one(f.means, arm, how, "clicks").sessions for f in found)
            cells = [_plain(mean(found, arm, how, measure)) for measure in MEASURES]
            body.append([arm, name, f"{sessions:,}", *cells])
    return table(["arm", "", "sessions", *NAMES.values()], body)


def _lifts(found: Sequence[Found]) -> list[str]:
    body = [
        [arm, name, *(_percent(lift(found, arm, how, measure)) for measure in MEASURES)]
        for arm in ARMS
        if arm != REFERENCE
        for how, name in HOWS.items()
    ]
    paper = ["LARR's paper, online", "its own traffic", *(f"{PAPER[m]:+.1%}" if m in PAPER else "-" for m in MEASURES)]
    return table(["arm", "", *(NAMES[measure] for measure in MEASURES)], [*body, paper])


def _days(found: Sequence[Found]) -> list[str]:
    days = sorted({one.day for one in found[0].days})
    body = [[arm, *(f"{_of_day(found, arm, day):.3f}" for day in days)] for arm in ARMS]
    return table(["arm", *(f"day {day + 1}" for day in days)], body)


def _of_day(found: Sequence[Found], arm: str, day: int) -> float:
    return float(np.mean([one.clicks for f in found for one in f.days if (one.arm, one.day) == (arm, day)]))


def _coverage(found: Sequence[Found]) -> list[str]:
    body = []
    for measure in MEASURES:
        for name in ESTIMATORS:
            of_one = [f for seed in found for f in seed.foretold if (f.measure, f.estimator) == (measure, name)]
            hits, logs = sum(f.covered for f in of_one), sum(f.logs for f in of_one)
            low, high = binomial(hits, logs)
            here = sum(f.low <= f.truth <= f.high for f in of_one)
            width = float(np.mean([(f.high - f.low) / 2 / f.truth for f in of_one]))
            worst = min(f.covered / f.logs for f in of_one)
            rate = f"{hits / logs:.1%} [{low:.1%}, {high:.1%}]"
            body.append([measure, name, rate, f"{worst:.1%}", f"{here} of {len(of_one)}", f"{width:.1%}"])
    return table(["measure", "estimator", "covered", "worst", "here", "width"], body)


def _pairs(found: Sequence[Found], measure: Measure, name: Estimator) -> list[str]:
    body = []
    for logged in ARMS:
        for other in ARMS:
            of_seeds = [
                f
                for seed in found
                for f in seed.foretold
                if (f.logged, f.other, f.measure, f.estimator) == (logged, other, measure, name)
            ]
            if of_seeds:
                told = [f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}] ({f.truth:.3f})" for f in of_seeds]
                body.append([logged, other, "; ".join(told)])
    return table(["log of", "what it foretells of", "estimates"], body)


def draw(found: Sequence[Found], file: Path) -> None:
    """Relative differences, days, and how often intervals hold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 4.6), width_ratios=(1.3, 1, 1))
    _draw_lifts(left, found)
    colors = dict(zip(ARMS, (NEUTRAL, OURS, "#e07a1f"), strict=True))
    days = sorted({one.day for one in found[0].days})
    for arm in ARMS:
        values = [_of_day(found, arm, day) for day in days]
        middle.plot([day + 1 for day in days], values, "o-", color=colors[arm], label=arm)
    middle.set(xlabel="day online", xticks=[day + 1 for day in days])
    middle.set_title("expected clicks of a session", loc="left")
    middle.legend(frameon=False, fontsize="small")
    _draw_coverage(right, found)
    for axis in (left, middle, right):
        axis.grid(color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"online_ab: {len(found)} seeds, 95 % intervals", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _draw_lifts(axis: Any, found: Sequence[Found]) -> None:
    lines: list[str] = []
    for arm in (arm for arm in ARMS if arm != REFERENCE):
        for how in ("observed", "certain"):
            for measure in MEASURES:
                change = lift(found, arm, how, measure)
                at = len(lines)
                lines.append(f"{arm}, {measure}, {'observed' if how == 'observed' else 'expected'}")
                color = NEUTRAL if how == "observed" else OURS
                if change.low is not None and change.high is not None:
                    axis.plot([100 * change.low, 100 * change.high], [at, at], color=color, linewidth=2)
                axis.plot([100 * change.mean], [at], "o", color=color)
                if arm == "LARR" and measure in PAPER:
                    axis.plot([100 * PAPER[measure]], [at], "|", color="#b03030", markersize=14)
    axis.axvline(0, color="#444444", linewidth=1)
    axis.set_yticks(range(len(lines)), lines)
    axis.invert_yaxis()
    axis.set_xlabel(f"against {REFERENCE}, % (red: LARR's paper)")
    axis.set_title("a session", loc="left")


def _draw_coverage(axis: Any, found: Sequence[Found]) -> None:
    labels = [(measure, name) for measure in MEASURES for name in ESTIMATORS]
    for at, (measure, name) in enumerate(labels):
        of_one = [f for seed in found for f in seed.foretold if (f.measure, f.estimator) == (measure, name)]
        hits, logs = sum(f.covered for f in of_one), sum(f.logs for f in of_one)
        axis.plot([100 * end for end in binomial(hits, logs)], [at, at], color=OURS, linewidth=2)
        axis.plot([100 * hits / logs], [at], "o", color=OURS)
    axis.axvline(100 * NOMINAL, color="#444444", linewidth=1)
    axis.set_yticks(range(len(labels)), [f"{name}, {measure}" for measure, name in labels])
    axis.invert_yaxis()
    axis.set_xlabel("% of intervals that hold the truth")
    axis.set_title("what logs alone foretell", loc="left")


def _percent(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.2%}"
    return f"{interval.mean:+.2%} [{interval.low:+.2%}, {interval.high:+.2%}]"


def _plain(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
