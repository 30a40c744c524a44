"""Plots of experiments: dots with 95 % intervals, one panel a measure."""

from __future__ import annotations

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
    lines = len(_of(findings.differences, panels[0])) or len(experiment.arms)
    size = (5.2 * len(panels) + 2.5, HEAD_INCHES + ROW_INCHES * max(lines, 3))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for metric, axis in zip(panels, axes[0], strict=True):
        if findings.differences:
            _differences(axis, _of(findings.differences, metric))
        else:
            _means(axis, [r for r in findings.rows if r.metric == metric and r.slice == ALL])
        axis.set_title(NAMES[metric], loc="left")
        axis.grid(axis="x", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"{experiment.name}, {len(experiment.seeds)} seeds, 95 % intervals", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=130)
    pyplot.close(figure)


def _of(differences: tuple[Difference, ...], metric: str) -> list[Difference]:
    return [d for d in differences if d.metric == metric]


def _differences(axis: Any, differences: list[Difference]) -> None:
    axis.axvline(0, color="#444444", linewidth=1)
    labels = []
    for at, d in enumerate(differences):
        interval = d.relative
        color = NEUTRAL if d.verdict == "undecided" else OURS
        if interval.low is not None and interval.high is not None:
            axis.plot([100 * interval.low, 100 * interval.high], [at, at], color=color, linewidth=2)
        axis.plot([100 * interval.mean], [at], "o", color=color)
        if d.margin is not None:
            axis.axvspan(-100 * d.margin, 100 * d.margin, color=OURS, alpha=0.06, linewidth=0)
        labels.append(f"{d.ours} against {d.reference}" + ("" if d.slice == ALL else f", {d.slice}"))
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("relative difference, %")


def _means(axis: Any, rows: list[Row]) -> None:
    for at, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [at, at], color=OURS, linewidth=2)
        if row.mean is not None:
            axis.plot([row.mean], [at], "o", color=OURS)
    axis.set_yticks(range(len(rows)), [row.model for row in rows])
