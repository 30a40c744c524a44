"""What 10, 100, 1,000 scenarios and 10,000, 100,000, a million users cost, and where the curves bend.

Multi-scenario backbones with layers of each scenario's own, with and without LLM4MSR's meta layers, on generated rows
(`scale_point`); and the store of users' knowledge (`scale_store`). A measure bends at the first tenfold of scenarios or
users that makes it worse by a factor of `BEND`. Points are measured one at a time, each in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from benchmarks.experiments import pool, scale_point, scale_store
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import read_json, rounded, staged, write_json
from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import Options, arguments, console
from benchmarks.experiments.scale_point import Effort, Found, Point
from benchmarks.experiments.scale_store import Stored, StoreFound
from benchmarks.experiments.tables import table
from benchmarks.experiments.worlds import plain_hash
from benchmarks.report import commit, machine
from trainers import recipes
from trainers.plain import from_plain, to_plain

NAME = "msr_scale"
# Raise it by hand with any change of what is measured, or of the networks' speed.
VERSION = 1
SCENARIOS, USERS = (10, 100, 1_000), (10_000, 100_000, 1_000_000)
MODELS = ("SharedBottom", "PLE")
QUICK = Effort(steps=3, requests=10, bulks=2, seconds=0.5)
BEND = 1.5
# Measure -> its name, and whether more is better.
MEASURES: Mapping[str, tuple[str, bool]] = {
    "train_rows_per_second": ("training samples/s", True),
    "p50_ms": ("ms a request, p50", False),
    "bulk_rows_per_second": ("rows/s in bulk", True),
    "peak_mib": ("peak MiB", False),
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One measure of one model along one axis, the other one at its smallest: `values` at `sizes`."""

    model: str
    measure: str
    axis: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def factors(self) -> tuple[float, ...]:
        """How many times worse each size is than the one before."""
        more = MEASURES[self.measure][1]
        return tuple(a / b if more else b / a for a, b in pairwise(self.values))

    @property
    def bend(self) -> int | None:
        """The size at which the curve bends."""
        return next((size for size, f in zip(self.sizes[1:], self.factors, strict=True) if f >= BEND), None)


def points(scale: Scale) -> dict[str, tuple[Point, ...]]:
    """Model -> its points of the grid."""
    scenarios, users = (SCENARIOS[:2], (1_000, 10_000)) if scale.quick else (SCENARIOS, USERS)
    effort = QUICK if scale.quick else Effort()
    arms = {}
    for name in MODELS[:1] if scale.quick else MODELS:
        arms[name] = recipes.on_backbone(recipes.ple(scale.size), BACKBONES[name])
        arms[f"{name} + LLM4MSR"] = recipes.on_backbone(recipes.llm4msr(scale.size), BACKBONES[name])
    return {
        model: tuple(
            Point(recipe=recipe, scenarios=s, users=u, effort=effort)
            for s in scenarios
            for u in users
            if not scale.quick or min(scenarios) == s or min(users) == u
        )
        for model, recipe in arms.items()
    }


def stores(scale: Scale) -> tuple[Stored, ...]:
    if scale.quick:
        return (Stored(users=1_000, online_users=200),)
    return tuple(Stored(users=users) for users in USERS)


def main(scale: Scale, options: Options) -> None:
    """Measure what is not there yet, then write and show the table and the plot. Raises SystemExit for seeds."""
    if options.seeds:
        raise SystemExit("--seeds: rows and weights of points of scale are drawn from one seed; leave it out")
    places, grid, stored = options.places, points(scale), stores(scale)
    wanted: list[Point | Stored] = [*(point for of_one in grid.values() for point in of_one), *stored]
    missing = [what for what in wanted if not _path(what, places).is_file()]
    # A rehearsal's numbers are nobody's: it may measure two at a time, one after the other in one process.
    workers, fresh = (options.workers, False) if scale.quick else (1, True)
    pool.each(partial(compute, places=places), missing, NAME, workers=workers, fresh=fresh, console=console)
    found = {
        name: [(point, from_plain(Found, _result(point, places))) for point in of_one] for name, of_one in grid.items()
    }
    kept = [(what, from_plain(StoreFound, _result(what, places))) for what in stored]
    lines = curves(found)
    text = markdown(found, kept, lines, options)
    with staged(places.results / f"{NAME}.md") as file:
        file.write_text(text)
    with staged(places.results / f"{NAME}.png") as file:
        draw(found, lines, file)
    write_json(places.results / f"{NAME}.json", rounded(_plain(found, kept, lines)))
    console.print(Markdown(text))


def compute(what: Point | Stored, places: Places) -> None:
    """The work of one process."""
    result = scale_point.measure(what) if isinstance(what, Point) else scale_store.measure(what)
    about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
    write_json(_path(what, places), {"what": to_plain(what), **about, "result": rounded(to_plain(result))})


def curves(found: Mapping[str, Sequence[tuple[Point, Found]]]) -> list[Curve]:
    """Every measure of every model, along scenarios and along users."""
    made = []
    for model, measured in found.items():
        for axis, other in (("scenarios", "users"), ("users", "scenarios")):
            least = min(getattr(point, other) for point, _ in measured)
            line = sorted(
                ((getattr(p, axis), result) for p, result in measured if getattr(p, other) == least),
                key=lambda at: at[0],
            )
            for measure in MEASURES:
                values = tuple(getattr(result, measure) for _, result in line)
                sizes = tuple(size for size, _ in line)
                made.append(Curve(model=model, measure=measure, axis=axis, sizes=sizes, values=values))
    return made


def markdown(
    found: Mapping[str, Sequence[tuple[Point, Found]]],
    kept: Sequence[tuple[Stored, StoreFound]],
    lines: Sequence[Curve],
    options: Options,
) -> str:
    """What was measured, and where it bends."""
    told = f"`{options.command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine()}; one thread."
    text = [f"# {NAME}", "", "What do more scenarios and more users cost, and where do the curves bend?", "", told]
    text += ["", "## Rankers", "", *_rankers(found), "", "## Where it bends", ""]
    text += [f"Times worse for each tenfold, the other number at its smallest; * where a curve bends: {BEND} or more."]
    text += ["", *_bends(lines), "", "## The store of users' knowledge", "", *_stores(kept)]
    return "\n".join(text) + "\n"


def _rankers(found: Mapping[str, Sequence[tuple[Point, Found]]]) -> list[str]:
    head = ["model", "scenarios", "users", "parameters", "training samples/s", "step ms", "of it optimiser"]
    head += ["first request ms", "p50 ms", "p99 ms", "rows/s in bulk", "vectors MiB", "kept layers MiB", "peak MiB"]
    body = [
        [
            model,
            f"{point.scenarios:,}",
            f"{point.users:,}",
            f"{r.parameters:,}",
            f"{r.train_rows_per_second:,.0f}",
            f"{r.step_ms:,.0f}",
            f"{r.optimizer_ms:,.0f}",
            f"{r.first_ms:.1f}",
            f"{r.p50_ms:.2f}",
            f"{r.p99_ms:.2f}",
            f"{r.bulk_rows_per_second:,.0f}",
            f"{r.vectors_mib:,.0f}",
            f"{r.kept_mib:.1f}",
            f"{r.peak_mib:,.0f}",
        ]
        for model, of_one in found.items()
        for point, r in of_one
    ]
    return table(head, body)


def _bends(lines: Sequence[Curve]) -> list[str]:
    body = []
    for line in lines:
        factors = [
            f"{factor:.2f}" + (" *" if size == line.bend else "")
            for size, factor in zip(line.sizes[1:], line.factors, strict=True)
        ]
        steps = " , ".join(f"to {size:,}: {told}" for size, told in zip(line.sizes[1:], factors, strict=True))
        body.append([line.model, line.axis, MEASURES[line.measure][0], steps.replace(" ,", ",")])
    return table(["model", "more", "measure", "times worse"], body)


def _stores(kept: Sequence[tuple[Stored, StoreFound]]) -> list[str]:
    head = ["users", "file MiB", "bytes a user", "write s", "load s", "matrix MiB", "online bytes a user"]
    body = [
        [
            f"{what.users:,}",
            f"{r.file_mib:,.1f}",
            f"{r.file_mib * 2**20 / what.users:,.0f}",
            f"{r.write_s:.1f}",
            f"{r.read_s:.1f}",
            f"{r.matrix_mib:,.1f}",
            f"{r.online_bytes:,.0f}",
            f"{r.online_users_per_second:,.0f}",
            f"{r.peak_mib:,.0f}",
        ]
        for what, r in kept
    ]
    return table([*head, "users/s put online", "peak MiB"], body)


def draw(found: Mapping[str, Sequence[tuple[Point, Found]]], lines: Sequence[Curve], file: Path) -> None:
    """Every measure along both axes, logarithmic; a ring where a curve bends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = ("scenarios", "users")
    figure, axes = pyplot.subplots(len(MEASURES), len(axes_of), figsize=(10, 3 * len(MEASURES)), squeeze=False)
    colors = dict(zip(found, ("#1f6f8b", "#e07a1f", "#7a7a7a", "#8b1f5a"), strict=False))
    for row, (measure, (name, _)) in zip(axes, MEASURES.items(), strict=True):
        for panel, axis in zip(row, axes_of, strict=True):
            for line in (line for line in lines if (line.measure, line.axis) == (measure, axis)):
                _line(panel, line, colors[line.model])
            panel.set(xscale="log", yscale="log", xlabel=axis)
            panel.set_title(name, loc="left")
            panel.grid(color="#e4e4e4")
            panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"{NAME}: the other number at its smallest; rings: {BEND} times worse or more", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _line(panel: Any, line: Curve, color: str) -> None:
    panel.plot(line.sizes, line.values, "o-", color=color, label=line.model, markersize=4)
    if line.bend is not None:
        at = line.sizes.index(line.bend)
        panel.plot([line.bend], [line.values[at]], "o", color=color, markersize=11, fillstyle="none")


def _plain(
    found: Mapping[str, Sequence[tuple[Point, Found]]],
    kept: Sequence[tuple[Stored, StoreFound]],
    lines: Sequence[Curve],
) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "about": {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": machine()},
        "rankers": [
            {"model": model, "scenarios": point.scenarios, "users": point.users, **to_plain(result)}
            for model, of_one in found.items()
            for point, result in of_one
        ],
        "curves": [{**to_plain(line), "factors": list(line.factors), "bend": line.bend} for line in lines],
        "stores": [{**to_plain(what), **to_plain(result)} for what, result in kept],
    }


def _result(what: Point | Stored, places: Places) -> Any:
    return read_json(_path(what, places))["result"]


def _path(what: Point | Stored, places: Places) -> Path:
    return places.cells / f"{NAME}-{plain_hash(what)[:12]}-v{VERSION}.json"


if __name__ == "__main__":
    main(*arguments(__doc__, None))
