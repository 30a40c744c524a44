"""What the prompt study leaves behind: JSON, Markdown with what follows from it, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.cells import rounded, staged, write_json
from benchmarks.experiments.places import Places
from benchmarks.experiments.plots import HEAD_INCHES, NEUTRAL, OURS, ROW_INCHES
from benchmarks.experiments.prompting.analysis import Findings, Likeness, Row
from benchmarks.experiments.statistics import Interval, verdict
from benchmarks.experiments.tables import table
from trainers.plain import to_plain

VERDICTS = {"above": "better than", "below": "worse than", "undecided": "not told from", "equivalent": "as good as"}
MEASURED = """\
Explained: the share of the differences between people's planted tastes (for every kind of place) that a ridge
regression on the vectors foretells, of people that it was not fitted on; 0 is nothing. Beside the mean over POIs: the
difference to it on the same users. Favourite: how often its highest value is the favourite kind. Words: how often the
model's own best word is that, in brackets by chance; clicked: how often it is the kind clicked most. Intervals are
95 %, over users. Prompts/s are of one thread, beside whatever else ran."""
ALIKE = """\
Cosine of the two vectors of a user, each set centred; neighbours: share of the nearest others that are so in both, in
brackets by chance; words: how often the best word is the same; gained: what the second reading explains less what the
first does; swapped: what is explained of the second reading by a
probe that was fitted on the first, less what its own probe explains."""


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
    head = ["reading", "users", "tokens (longest)", "prompts/s", "explained", "beside the mean over POIs"]
    head += ["favourite", "words (chance)", "clicked"]
    for group in dict.fromkeys(row.group for row in findings.rows):
        lines += ["", f"### {group.capitalize()}", ""]
        lines += table(head, [_row(row) for row in findings.rows if row.group == group])
    lines += ["", "## How alike readings are", "", ALIKE]
    head = ["first", "second", "read", "cosine", "neighbours (chance)", "words", "gained", "swapped"]
    for group in dict.fromkeys(of.group for of in findings.likeness):
        lines += ["", f"### {group.capitalize()}", ""]
        lines += table(head, [_likeness(of) for of in findings.likeness if of.group == group])
    return "\n".join(lines) + "\n"


def follows(findings: Findings) -> list[str]:
    """The answers that the numbers give, in sentences."""
    said = []
    for group in ("structures", "poolings"):
        rows = [row for row in findings.rows if row.group == group and row.against is not None]
        if rows:
            best = max(rows, key=lambda row: row.explained.mean)
            assert best.against is not None
            said.append(
                f"Of the {group}, {best.name} tells most of tastes ({_told(best.explained)}), "
                f"{VERDICTS[verdict(best.against)]} the mean over POIs ({_told(best.against, '+')})."
            )
    for of in findings.likeness:
        if of.group in ("structures", "wordings", "versions") and of.gained:
            other = verdict(of.gained)
            said.append(
                f"{of.b} is {VERDICTS[other]} {of.a} ({_told(of.gained, '+')}); {of.neighbours.mean:.0%} of a user's "
                f"nearest others stay ({of.chance:.0%} by chance)."
            )
    return said


def _row(row: Row) -> list[str]:
    took = row.result
    return [
        row.name,
        f"{row.users:,}",
        f"{took.tokens:.0f} ({took.longest}){_over(took.over)}" if took and took.longest else "-",
        f"{took.prompts_per_second:,.1f}" if took else "-",
        _told(row.explained),
        _told(row.against, "+") if row.against else "-",
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
        _told(of.gained, "+") if of.gained else "-",
        _told(of.swapped, "+") if of.swapped else "-",
    ]


def _told(interval: Interval, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:{sign}.3f}"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def draw(name: str, rows: Sequence[Row], file: Path) -> None:
    """What each reading explains, and how often its words are right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (13.0, HEAD_INCHES + ROW_INCHES * max(len(rows), 3))
    figure, (explained, words) = pyplot.subplots(1, 2, figsize=size, sharey=True)
    for at, row in enumerate(rows):
        better = row.against is not None and verdict(row.against) == "above"
        _dot(explained, at, row.explained, OURS if better else NEUTRAL)
        if row.words:
            _dot(words, at, row.words.favourite, OURS)
            words.plot([row.words.chance], [at], "|", color=NEUTRAL, markersize=9)
    explained.axvline(0, color="#444444", linewidth=1)
    explained.set_title("tastes explained (blue: more than by the mean over POIs)", loc="left")
    words.set_title("words that are the favourite (bar: by chance)", loc="left")
    for axis in (explained, words):
        axis.grid(axis="x", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    explained.set_yticks(range(len(rows)), [f"{row.group}: {row.name} ({row.users:,})" for row in rows])
    explained.invert_yaxis()
    figure.suptitle(f"{name}: 95 % intervals over users", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=130)
    pyplot.close(figure)


def _dot(axis: Any, at: int, interval: Interval, color: str) -> None:
    if interval.low is not None and interval.high is not None:
        axis.plot([interval.low, interval.high], [at, at], color=color, linewidth=2)
    axis.plot([interval.mean], [at], "o", color=color)
