"""What the prompt study leaves behind: JSON, Markdown with what follows from it, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.experiments.cells import rounded, staged, write_json
from benchmarks.experiments.places import Places
from benchmarks.experiments.plots import HEAD_INCHES, NEUTRAL, OURS, ROW_INCHES
from benchmarks.experiments.prompting.analysis import Findings, Likeness, Row
from benchmarks.experiments.statistics import Interval, verdict
from benchmarks.experiments.tables import table
from trainers.plain import to_plain

DIFFERENCES = {"above": "more", "below": "less", "undecided": "neither more nor less", "equivalent": "as much"}
MEASURED = """\
Tastes: the share of the differences between people's planted tastes (for every kind of place) that a ridge regression
on the vectors foretells, of people that it was not fitted on; 0 is nothing. Clicks: likewise, of the share of each kind
among the newest clicks, which prompts are made of and whose vectors the mean over POIs averages. Against: the
difference to that mean on the same users. Favourite: how often the highest taste foretold is that of the favourite
kind. Words: how often the model's own best word is the favourite, in brackets by chance; of clicks: how often it is the
kind clicked most. Intervals are 95 %, over users. Prompts/s are of one thread, beside whatever else ran."""
ALIKE = """\
Cosine of the two vectors of a user, each set centred; neighbours: share of the nearest others that are so in both, in
brackets by chance; words: how often the best word is the same; tastes and clicks: what the second reading explains less
what the first does; swapped: what is explained of clicks where a probe that was fitted on the first reading meets the
second, less what its own probe explains."""


def write(name: str, told: Sequence[str], findings: Findings, places: Places) -> str:
    """Write the three files and return the text of the second.

    Args:
        told: lines about the run.
    """
    text = markdown(name, told, findings)
    write_json(places.results / f"{name}.json", rounded({"about": list(told), **to_plain(findings)}))
    with staged(places.results / f"{name}.png") as file:
        draw(name, findings.rows, file)
    with staged(places.results / f"{name}.md") as file:
        file.write_text(text)
    return text


def markdown(name: str, told: Sequence[str], findings: Findings) -> str:
    lines = [f"# {name}", "", *told, "", "## What follows", "", *(f"- {line}" for line in follows(findings))]
    lines += ["", "## What vectors tell of tastes", "", MEASURED]
    head = ["reading", "users", "tokens (longest)", "prompts/s", "tastes", "against"]
    head += ["clicks", "against", "favourite", "words (chance)", "of clicks"]
    for group in dict.fromkeys(row.group for row in findings.rows):
        lines += ["", f"### {group.capitalize()}", ""]
        lines += table(head, [_row(row) for row in findings.rows if row.group == group])
    lines += ["", "## How alike readings are", "", ALIKE]
    head = ["first", "second", "read", "cosine", "neighbours (chance)", "words"]
    head += ["tastes", "clicks", "swapped"]
    for group in dict.fromkeys(of.group for of in findings.likeness):
        lines += ["", f"### {group.capitalize()}", ""]
        lines += table(head, [_likeness(of) for of in findings.likeness if of.group == group])
    return "\n".join(lines) + "\n"


def follows(findings: Findings) -> list[str]:
    """The answers that the numbers give, in sentences."""
    said = []
    for group in ("structures", "poolings"):
        rows = [row for row in findings.rows if row.group == group]
        said += [line for what in ("tastes", "clicks") if (line := _best(group, what, rows))]
    for of in findings.likeness:
        if of.group in ("structures", "wordings", "versions") and of.tastes and of.clicks:
            said.append(
                f"{of.b} beside {of.a}: {DIFFERENCES[verdict(of.tastes)]} of tastes ({_told(of.tastes, '+')}), "
                f"{DIFFERENCES[verdict(of.clicks)]} of clicks ({_told(of.clicks, '+')}); {of.neighbours.mean:.0%} of a "
                f"user's nearest others stay ({of.chance:.0%} by chance)."
            )
    return said


def _best(group: str, what: Literal["tastes", "clicks"], rows: Sequence[Row]) -> str:
    """The reading that tells most, beside the control; nothing where there is but the control."""
    told = {row.name: row.tastes if what == "tastes" else row.clicks for row in rows}
    beside = {name: (of.explained, of.against) for name, of in told.items() if of.against is not None}
    if not beside:
        return ""
    name = max(beside, key=lambda name: beside[name][0].mean)
    explained, against = beside[name]
    return (
        f"Of the {group}, {name} tells most of {what} ({_told(explained)}): {DIFFERENCES[verdict(against)]} than the "
        f"mean over POIs ({_told(against, '+')})."
    )


def _row(row: Row) -> list[str]:
    took = row.result
    return [
        row.name,
        f"{row.users:,}",
        f"{took.tokens:.0f} ({took.longest}){_over(took.over)}" if took and took.longest else "-",
        f"{took.prompts_per_second:,.1f}" if took else "-",
        *(cell for of in (row.tastes, row.clicks) for cell in (_told(of.explained), _signed(of.against))),
        _told(row.favourite),
        f"{_told(row.words.favourite)} ({row.words.chance:.3f})" if row.words else "-",
        f"{row.words.clicked:.2f}" if row.words else "-",
    ]


def _over(share: float) -> str:
    return f", {share:.0%} over the limit" if share else ""


def _likeness(of: Likeness) -> list[str]:
    return [
        of.a,
        of.b,
        f"{of.users:,}",
        _told(of.cosine),
        f"{_told(of.neighbours)} ({of.chance:.3f})",
        _told(of.words) if of.words else "-",
        *map(_signed, (of.tastes, of.clicks, of.swapped)),
    ]


def _signed(interval: Interval | None) -> str:
    return _told(interval, "+") if interval else "-"


def _told(interval: Interval, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:{sign}.3f}"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def draw(name: str, rows: Sequence[Row], file: Path) -> None:
    """What each reading explains, and how often its words are right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (15.0, HEAD_INCHES + ROW_INCHES * max(len(rows), 3))
    figure, axes = pyplot.subplots(1, 3, figsize=size, sharey=True)
    for at, row in enumerate(rows):
        for axis, told in zip(axes, (row.tastes, row.clicks), strict=False):
            better = told.against is not None and verdict(told.against) == "above"
            _dot(axis, at, told.explained, OURS if better else NEUTRAL)
        if row.words:
            _dot(axes[2], at, row.words.favourite, NEUTRAL)
            axes[2].plot([row.words.chance], [at], "|", color=NEUTRAL, markersize=9)
    for axis, title in zip(
        axes, ("tastes explained", "clicks explained", "words: favourites (bar: by chance)"), strict=True
    ):
        axis.set_title(title, loc="left")
        axis.grid(axis="x", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), [f"{row.group}: {row.name} ({row.users:,})" for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(f"{name}: 95 % intervals over users; blue: more than the mean over POIs", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=130)
    pyplot.close(figure)


def _dot(axis: Any, at: int, interval: Interval, color: str) -> None:
    if interval.low is not None and interval.high is not None:
        axis.plot([interval.low, interval.high], [at, at], color=color, linewidth=2)
    axis.plot([interval.mean], [at], "o", color=color)
