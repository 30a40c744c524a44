"""What a person sees of a run: progress bars, the ranking as a table, metrics side by side."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from serving.stages import Report

# Terminals tell their width; a log file gets lines that hold every table. The stream is named because libraries that
# print are silenced by redirecting `sys.stdout` (stages.quiet).
console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
BAR_CELLS = 12
METRICS = ("auc", "gauc", "log_loss", "ece")


class _Rate(ProgressColumn):
    """How many of what is counted are done in a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self._unit}/s")


@contextmanager
def stage(title: str, unit: str | None = None) -> Iterator[Report]:
    """A bar for one stage; a line with its time stays when it is done.

    Args:
        unit: of what is counted, where its rate says something.
    """
    started, counted = time.perf_counter(), 0
    shape = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rate = () if unit is None else (_Rate(unit),)
    live = console.is_terminal

    def report(what: str, done: int, total: int) -> None:
        nonlocal counted
        counted = done
        bars.update(task, description=what, completed=done, total=total)

    with Progress(*shape, TimeRemainingColumn(), *rate, console=console, transient=True, disable=not live) as bars:
        task = bars.add_task(title, total=None)
        yield report
    seconds = time.perf_counter() - started
    work = "" if unit is None else f", {counted:,} {unit}, {counted / seconds:,.0f} {unit}/s"
    console.print(f"[green]✓[/] {title} [dim]({seconds:.1f} s{work})[/]", highlight=False)


@contextmanager
def one_of_many() -> Iterator[None]:
    """Of several processes that do the same, only the first one says so."""
    before = console.quiet
    console.quiet = before or os.environ.get("RANK", "0") != "0"
    try:
        yield
    finally:
        console.quiet = before


def perplexity_table(report: Any) -> Table:
    """Perplexity before and after on each test set; `report` is a `PretrainReport`."""
    title = f"perplexity before and after {report.steps} steps ({report.seconds:.0f} s)"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("test set")
    for name in ("documents", "before", "after", "content before", "content after"):
        table.add_column(name, justify="right")
    for name, after in report.after.items():
        before = report.before[name]
        cells = (before.all, after.all, before.content, after.content)
        said = ("" if value is None else f"{value:.2f}" for value in cells)
        table.add_row(name.replace("_", " "), str(after.documents), *said)
    return table


def contrast_table(report: Any) -> Table:
    """Losses at the beginning and at the end of stage 2; `report` is a `ContrastReport`."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.pairs.items())
    title = f"loss of the first and the last steps ({report.seconds:.0f} s; pairs: {kinds})"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for name in ("part", "first", "last"):
        table.add_column(name, justify="left" if name == "part" else "right")
    beside = {"step", "seconds", "tokens_per_second", "learning_rate"}
    for name in [name for name in report.last if name not in beside]:
        table.add_row(name.replace("_", " "), f"{report.first[name]:.4f}", f"{report.last[name]:.4f}")
    return table


def probe_table(report: Any) -> Table:
    """Embedders side by side on places held out; `report` is a `ProbeReport`."""
    title = "embedders on what was held out (95 % intervals)"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("embedder")
    for name in report.columns:
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(row.name, *report.cells(row))
    return table


def knowledge_table(report: Any) -> Table:
    """What asking took; `report` is a `KnowledgeReport`."""
    title = "prompts of all snapshots"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("vectors")
    for name in ("version", "snapshots", "prompts", "different", "computed", "seconds", "prompts/s"):
        table.add_column(name, justify="right")
    for level in report.levels:
        counts = (level.snapshots, level.prompts, level.different, level.computed)
        rate = f"{level.computed / level.seconds:.1f}" if level.computed else ""
        table.add_row(level.space, level.version, *(f"{n:,}" for n in counts), f"{level.seconds:.1f}", rate)
    return table


def examples_table(report: Any) -> Table:
    """What the model says of some scenarios and users; `report` is a `KnowledgeReport`."""
    title = "newest snapshot: apt words, and the facts that were told"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for name in ("of", "words", "facts"):
        table.add_column(name)
    for example in report.examples:
        told = f"\n[dim]{escape(example.told)}[/]" if example.told else ""
        table.add_row(escape(example.key), escape(example.words), escape(example.text) + told)
    return table


def tastes_line(tastes: Any) -> str:
    """How true the words are; `tastes` is a `TasteReport`."""
    return (
        f"planted favourite category, {tastes.users} users, {tastes.kinds} categories: the best word names it for "
        f"{tastes.said:.1%} (by chance {tastes.chance:.1%}); the category that they clicked most is it for "
        f"{tastes.clicked:.1%}"
    )


def coverage_table(found: Sequence[Any], at: datetime) -> Table:
    """What language models know, by vector space; rows are `Coverage`."""
    table = Table(title=f"knowledge at {at:%Y-%m-%d %H:%M} UTC", title_justify="left")
    for name in ("space", "model", "version"):
        table.add_column(name)
    for name in ("entities", "of", "covered", "texts read", "newest", "median age", "wanted"):
        table.add_column(name, justify="right")
    for one in found:
        of = "" if one.known is None else f"{one.known:,}"
        covered = "" if one.share is None else f"{one.share:.0%}"
        ages = ["" if age is None else _span(age) for age in (one.newest_s, one.median_s)]
        table.add_row(
            f"[dim]{one.space}, beside[/]" if one.beside else one.space,
            one.model or "[dim]nothing[/]",
            one.version,
            f"{one.entities:,}",
            of,
            covered,
            f"{one.texts:,}",
            *ages,
            f"{one.wanted:,}" if one.wanted else "",
        )
    return table


def freshness_table(found: Sequence[Any], at: datetime) -> Table:
    """Ages of every view's values; rows are `Freshness`."""
    table = Table(title=f"ages of each entity's newest value at {at:%Y-%m-%d %H:%M} UTC", title_justify="left")
    for name in ("view", "side", "entities", "newest", "median", "p99", "expired", "promised", ""):
        table.add_column(name, justify="left" if name in ("view", "side", "") else "right")
    for one in found:
        ages = [_span(age) for age in one.ages_s] or ["", "", ""]
        promised = "" if one.within_s is None else _span(one.within_s)
        verdict = "" if one.within_s is None else "[red]late[/]" if one.late else "[green]in time[/]"
        table.add_row(one.view, one.side, f"{one.entities:,}", *ages, f"{one.stale:.1%}", promised, verdict)
    return table


def _span(seconds: float) -> str:
    """A time span in its largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def certificate_line(certificate: Any) -> str:
    """What was compared and what came of it; `certificate` is a `Certificate`."""
    cases = ", ".join(f"{count} {case}" for case, count in certificate.cases.items())
    values = ", ".join(f"{count:,} {status}" for status, count in certificate.values.items())
    verdict = "[green]all agree[/]" if certificate.valid else "[red]they differ[/]"
    served = f", and {certificate.served:,} rows that were served" if certificate.served else ""
    return (
        f"{certificate.impressions:,} impressions of {certificate.requests} requests ({cases}), {certificate.columns} "
        f"columns, stored values {values}{served}: {verdict}"
    )


def differences_table(certificate: Any) -> Table:
    """The columns that do not agree online and offline."""
    table = Table(title="online is not offline", title_justify="left")
    for name in ("column", "view", "rows", "the first"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for found in certificate.differences:
        table.add_row(found.column, found.view or "(the request)", f"{found.rows:,}", escape(found.example))
    return table


def ranking_table(ranking: Any, title: str) -> Table:
    """An answer of the server as a table; `ranking` is `recommender_pb2.Ranking` with details."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    for name in ("#", "place", "kind", "distance", "p(click)", "p(order)"):
        table.add_column(name, justify="left" if name in ("place", "kind") else "right")
    for at, poi in enumerate(ranking.poi_ids):
        details = ranking.details[at] if ranking.details else None
        distance = ranking.distance_km[at]
        table.add_row(
            str(at + 1),
            (details.name if details else "") or poi,
            details.category if details else "",
            "" if math.isnan(distance) else f"{distance * 1000:.0f} m",
            f"{ranking.p_click[at]:.3f}",
            f"{ranking.p_order[at]:.3f}",
        )
    return table


def explanation_table(explanation: Any, title: str) -> Table:
    """What moved a score, as bars to either side of none; `explanation` is `recommender_pb2.Explanation`."""
    from serving.v1 import recommender_pb2 as pb

    caption = f"score {explanation.score:.3f}: p(click) {explanation.p_click:.3f}, p(order) {explanation.p_order:.3f}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", min_width=len(title))
    for name in ("effect", "", "cause", "kind", "of", "value, and what a language model read"):
        table.add_column(name, justify="right" if name == "effect" else "left")
    largest = max((abs(cause.effect) for cause in explanation.causes), default=0.0) or 1.0
    for cause in explanation.causes:
        size = round(BAR_CELLS * abs(cause.effect) / largest)
        bar = f"[green]{'█' * size}[/]" if cause.effect > 0 else f"[red]{'█' * size}[/]"
        text = f"[dim]{escape(cause.text)}[/]" if cause.text else ""
        said = "\n".join(part for part in (escape(cause.value), text) if part)
        kind = _spelt(pb.CauseKind.Name(cause.kind), "CAUSE_KIND_")
        level = _spelt(pb.CauseLevel.Name(cause.level), "CAUSE_LEVEL_")
        table.add_row(f"{cause.effect:+.4f}", bar, cause.name, kind, level, said)
    return table


def _spelt(name: str, prefix: str) -> str:
    """The name of an enum's value in words."""
    return name.removeprefix(prefix).replace("_", " ").lower()


def scene_line(ranking: Any) -> str:
    """The scene as the server understood it."""
    aspects = (f"{aspect.feature} [bold]{aspect.value}[/]" for aspect in ranking.scene if aspect.value)
    return "scene: " + ", ".join(aspects)


@dataclass(frozen=True)
class Run:
    """The test metrics of one model from one seed, as its bundle holds them."""

    model: str
    seed: int
    metrics: Mapping[str, Any]


def metrics_table(runs: Sequence[Run], title: str) -> Table:
    """Models side by side on click and order: the mean over seeds, with the spread where there are several."""
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("model")
    tasks = [task for task in ("click", "order") if any(run.metrics[task]["auc"] is not None for run in runs)]
    for task in tasks:
        for metric in METRICS:
            table.add_column(f"{task} {metric.replace('_', ' ')}", justify="right")
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run.metrics for run in runs if run.model == model]
        table.add_row(model, *(_mean(of_model, task, metric) for task in tasks for metric in METRICS))
    if any(run.metrics["click"]["best_auc"] is not None for run in runs):
        every = [run.metrics for run in runs if run.model == runs[0].model]  # the same for all models
        best = [["best_auc", "", "best_log_loss", ""] for _ in tasks]
        cells = [_mean(every, t, m) if m else "" for t, ms in zip(tasks, best, strict=True) for m in ms]
        table.add_row("best attainable", *cells, style="dim")
    return table


def scenario_table(runs: Sequence[Run]) -> Table:
    """Click AUC by scenario, models side by side."""
    models = list(dict.fromkeys(run.model for run in runs))
    table = Table(title="click AUC by scenario", title_justify="left")
    for name in ("scenario", "rows", *models):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    scenarios = runs[0].metrics["click_by_scenario"]
    for scenario in scenarios:
        cells = []
        for model in models:
            of_model = [run.metrics["click_by_scenario"] for run in runs if run.model == model]
            cells.append(_mean([m for m in of_model if scenario in m], scenario, "auc"))
        table.add_row(scenario, str(scenarios[scenario]["rows"]), *cells)
    return table


def retrieval_table(manifest: Mapping[str, Any]) -> Table:
    """How often the next click is among the first k POIs that a way of retrieval names."""
    metrics = manifest["metrics"]
    title = f"hit rate of the next click ({metrics['clicks']} clicks, {metrics['pois']} POIs)"
    table = Table(title=title, title_justify="left", min_width=len(title))
    ways = metrics["hit_rate"]
    ks = list(dict.fromkeys(k for rates in ways.values() for k in rates))
    table.add_column("retrieval by")
    for k in ks:
        table.add_column(f"at {k}", justify="right")
    for name, rates in ways.items():
        table.add_row(name.replace("_", " "), *(f"{rates[k]:.3f}" for k in ks))
    return table


def _mean(metrics: Sequence[Mapping[str, Any]], task: str, metric: str) -> str:
    values = [m[task][metric] for m in metrics if m[task][metric] is not None]
    if not values:
        return "-"
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def serving_line(serving: Any) -> str:
    """Which bundle answers and which one is ready behind it; `serving` is a `Serving`."""
    since = serving.since.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
    line = f"{serving.current.name} {serving.current.version} answers since {since} UTC"
    if serving.HasField("previous"):
        line += f"; {serving.previous.name} {serving.previous.version} is ready to be rolled back to"
    return line


def shadow_table(report: Any) -> Table:
    """How the bundle in the shadow compares, by scenario; `report` is a `ShadowReport`."""
    title = (
        f"{report.model.name} {report.model.version} in the shadow of {100 * report.share:.0f} % of the requests: "
        f"{report.answers:,} compared, {report.failed} failed, {report.skipped} skipped; of the first ten "
        f"{10 * report.overlap_at_10:.1f} the same; {report.latency_ratio:.2f} of the time"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("scenario")
    for name in ("places", "p(click)", "in the shadow", "shown", "clicks", "expected", "expected in the shadow"):
        table.add_column(name, justify="right")
    for one in report.scenarios:
        expected = (f"{one.expected_clicks:.1f}", f"{one.shadow_expected_clicks:.1f}") if one.shown else ("", "")
        means = (f"{one.mean_p_click:.4f}", f"{one.shadow_mean_p_click:.4f}")
        table.add_row(one.scenario_id, f"{one.places:,}", *means, f"{one.shown:,}", f"{one.clicks:,}", *expected)
    return table
