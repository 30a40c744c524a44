"""Plots of experiments: dots with 95 % intervals, one panel a measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.analysis import Difference, Findings, Row
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.tables import NAMES

OURS, NEUTRAL = "#1f6f8b", "#7a7a7a"
ROW_INCHES, HEAD_INCHES = 0.32, 1.3


def draw(experiment: Experiment, findings: Findings, file: Path) -> None:
    """Relative differences where arms are compared, else the measures themselves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = experiment.compared
    lines = list(dict.fromkeys(map(label, findings.differences))) or list(experiment.arms)
    size = (5.2 * len(panels) + 2.5, HEAD_INCHES + ROW_INCHES * max(len(lines), 3))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for metric, axis in zip(panels, axes[0], strict=True):
        if findings.differences:
            _differences(axis, [d for d in findings.differences if d.metric == metric], lines)
        else:
            _means(axis, [r for r in findings.rows if r.metric == metric and r.slice == ALL])
        axis.set_title(NAMES[metric], loc="left")
        axis.grid(axis="x", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(lines)), lines)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"{experiment.name}: {len(experiment.seeds)} seeds, 95 % intervals", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=130)
    pyplot.close(figure)


def label(difference: Difference) -> str:
    where = "" if difference.slice == ALL else f", {difference.slice}"
    return f"{difference.ours} against {difference.reference}{where}"


def _differences(axis: Any, differences: Sequence[Difference], lines: Sequence[str]) -> None:
    axis.axvline(0, color="#444444", linewidth=1)
    for d in differences:
        at, interval = lines.index(label(d)), d.relative
        color = NEUTRAL if d.verdict == "undecided" else OURS
        if interval.low is not None and interval.high is not None:
            axis.plot([100 * interval.low, 100 * interval.high], [at, at], color=color, linewidth=2)
        axis.plot([100 * interval.mean], [at], "o", color=color)
    for margin in {d.margin for d in differences if d.margin is not None}:
        axis.axvspan(-100 * margin, 100 * margin, color=OURS, alpha=0.1, linewidth=0)
    axis.set_xlabel("relative difference, %")


def _means(axis: Any, rows: Sequence[Row]) -> None:
    for at, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [at, at], color=OURS, linewidth=2)
        if row.mean is not None:
            axis.plot([row.mean], [at], "o", color=OURS)
