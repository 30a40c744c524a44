"""What an experiment leaves behind: `<experiment>.json` for programs, `.md` for people, `.png` for both eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiments.analysis import Cost, Difference, Findings, Row
from benchmarks.experiments.cells import read_json, rounded, staged, write_json
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.places import Places
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.statistics import Interval
from trainers.plain import to_plain

NAMES = {
    "ctr_auc": "CTR AUC",
    "ctcvr_auc": "CTCVR AUC",
    "ctr_gauc": "CTR GAUC",
    "ctcvr_gauc": "CTCVR GAUC",
    "ctr_log_loss": "CTR log loss",
    "ctcvr_log_loss": "CTCVR log loss",
    "ctr_ece": "CTR ECE",
    "ctcvr_ece": "CTCVR ECE",
    "hr": "HR@10",
    "ndcg": "NDCG@10",
}
SLICE = "## Slice: "  # what a slice's heading begins with
VERDICTS = {"above": "better", "below": "worse", "equivalent": "equivalent", "undecided": "undecided"}


@dataclass(frozen=True, kw_only=True)
class About:
    """Where the numbers of a table come from."""

    command: str
    question: str
    seeds: tuple[int, ...]
    fingerprint: str
    date: str
    commit: str
    machine: str
    worlds: Mapping[str, Any]


def write(experiment: Experiment, findings: Findings, about: About, places: Places) -> str:
    """Write the three files and return the text of the second."""
    from benchmarks.experiments.plots import draw

    text = markdown(experiment, findings, about)
    content = rounded({"about": to_plain(about), **to_plain(findings)})
    with staged(places.results / f"{experiment.name}.png") as file:
        draw(experiment, findings, file)
    with staged(places.results / f"{experiment.name}.md") as file:
        file.write_text(text)
    write_json(places.results / f"{experiment.name}.json", content)  # the last one: it says that all are there
    return text


def written(experiment: Experiment, places: Places) -> str | None:
    """The text of a table that says what this experiment would say again; None where there is none."""
    path = places.results / f"{experiment.name}.json"
    if not path.is_file() or read_json(path)["about"]["fingerprint"] != experiment.fingerprint:
        return None
    return (places.results / f"{experiment.name}.md").read_text()


def markdown(experiment: Experiment, findings: Findings, about: About) -> str:
    """Quality, paired differences and costs of an experiment."""
    seeds = f"seeds {', '.join(map(str, about.seeds))}"
    lines = [f"# {experiment.name}", "", about.question, "", f"`{about.command}`, {about.date}, {seeds}, "]
    lines[-1] += f"commit {about.commit}, {about.machine}. Means over seeds, 95 % intervals."
    if experiment.conclude:
        lines += [text for sentence in experiment.conclude(findings.differences) for text in ("", sentence)]
    lines += ["", "## The whole test part", ""]
    lines += _quality([row for row in findings.rows if row.slice == ALL], experiment.measures)
    if findings.differences:
        lines += ["", "## Differences of the same seeds", ""]
        lines += _differences(findings.differences)
    lines += ["", "## Cost", ""]
    lines += _costs(findings.costs)
    if findings.facts:
        names = list(dict.fromkeys(name for of in findings.facts.values() for name in of))
        body = [[what, *(f"{of[n]:,.4g}" if n in of else "-" for n in names)] for what, of in findings.facts.items()]
        lines += ["", "## Beside the cells", "", *table(["", *names], body)]
    for at in (name for name in experiment.slices if name != ALL):
        lines += ["", f"{SLICE}{at}", ""]
        lines += _quality([row for row in findings.rows if row.slice == at], experiment.measures)
    return "\n".join(lines) + "\n"


def brief(text: str) -> str:
    """A table's text without its slices."""
    return text.split(f"\n{SLICE}")[0]


def _quality(rows: Sequence[Row], measures: Sequence[str]) -> list[str]:
    found = {(row.model, row.metric): row for row in rows}
    body = [
        [model, *(_mean(found[model, metric]) for metric in measures)] for model in dict.fromkeys(r.model for r in rows)
    ]
    return table(["model", *(NAMES[metric] for metric in measures)], body)


def _mean(row: Row) -> str:
    if row.mean is None:
        return "-"
    half = "" if row.high is None else f" ± {row.high - row.mean:.4f}"
    return f"{row.mean:.4f}{half}"


def _differences(differences: Sequence[Difference]) -> list[str]:
    head = ["ours", "against", "slice", "metric", "difference", "relative", "interval over", "verdict"]
    body = [
        [
            d.ours,
            d.reference,
            d.slice,
            NAMES[d.metric],
            _interval(d.absolute, "{:+.4f}"),
            _interval(d.relative, "{:+.2%}"),
            d.relative.by,
            VERDICTS[d.verdict] + (f" (±{d.margin:.1%})" if d.margin is not None else ""),
        ]
        for d in differences
    ]
    return table(head, body)


def _interval(interval: Interval, form: str) -> str:
    mean = form.format(interval.mean)
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{form.format(interval.low)}, {form.format(interval.high)}]"


def _costs(costs: Sequence[Cost]) -> list[str]:
    head = ["model", "parameters", "epochs", "training s", "rows/s", "ms per 200 candidates", "MFLOP", "peak MiB"]
    body = [
        [
            c.model,
            f"{c.parameters:,.0f}",
            f"{c.epochs:.1f}",
            f"{c.train_seconds:.1f}",
            f"{c.rows_per_second:,.0f}",
            f"{c.inference_ms:.2f}",
            f"{c.inference_mflops:.0f}",
            f"{c.peak_mib:,.0f}",
            "-" if c.alignment is None else f"{c.alignment:.3f}",
        ]
        for c in costs
    ]
    return table([*head, "alignment loss"], body)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers or short words."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
