"""Every backbone under the protocol of Scenario-Wise Rec, beside the numbers of its draft.

The published values are those of a draft of 2024, without deviations; some models are known to be wrong in its code
(`DEFECTS`). A seed draws the cut and the weights. Target: what was published without a known defect, less `BAR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path

from rich.markdown import Markdown

from benchmarks.experiments import pool, scenario_wise, statistics
from benchmarks.experiments.backbones import BACKBONES
from benchmarks.experiments.cells import read_json, rounded, staged, write_json
from benchmarks.experiments.city import Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import Options, arguments, console
from benchmarks.experiments.scenario_wise import DOMAINS, Films, Found, Run, trained
from benchmarks.experiments.tables import table
from benchmarks.experiments.worlds import plain_hash
from benchmarks.report import commit, machine
from trainers.models.backbones import BackboneConfig
from trainers.plain import from_plain, to_plain

NAME = "msr_scenario_wise"
BAR = 0.005
QUICK_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Published:
    """AUC and log loss overall, and AUC in each of `DOMAINS` (draft tables 4, 7 and 8)."""

    auc: float
    log_loss: float
    domain_auc: tuple[float, float, float]


PUBLISHED = {
    "SharedBottom": Published(auc=0.8095, log_loss=0.5228, domain_auc=(0.8116, 0.8128, 0.8041)),
    "MMoE": Published(auc=0.8086, log_loss=0.5218, domain_auc=(0.8029, 0.8178, 0.8016)),
    "PLE": Published(auc=0.8091, log_loss=0.5257, domain_auc=(0.8118, 0.8187, 0.8002)),
    "STAR": Published(auc=0.8096, log_loss=0.5258, domain_auc=(0.8137, 0.8133, 0.7979)),
    "SAR-Net": Published(auc=0.8092, log_loss=0.5245, domain_auc=(0.8068, 0.8158, 0.8026)),
    "M2M": Published(auc=0.8115, log_loss=0.5213, domain_auc=(0.8111, 0.8163, 0.8057)),
    "AdaSparse": Published(auc=0.8108, log_loss=0.5205, domain_auc=(0.8109, 0.8188, 0.7947)),
    "EPNet": Published(auc=0.8097, log_loss=0.5215, domain_auc=(0.8100, 0.8148, 0.8031)),
    "PPNet": Published(auc=0.8063, log_loss=0.5257, domain_auc=(0.8084, 0.8113, 0.7994)),
}
DEFECTS = {
    "STAR": "published from a network whose scores depend on the batch, without a logit below zero from its main part",
    "M2M": "published from a network whose rows attend to each other, at test too",
    "AdaSparse": "published from a network whose two evaluations differ",
    "PPNet": "published from a network whose embeddings get no gradient from the towers",
}


def experiment(scale: Scale, seeds: Sequence[int] | None = None) -> dict[str, tuple[Run, ...]]:
    """Backbone -> its runs, one a seed."""

    def run(backbone: BackboneConfig, seed: int) -> Run:
        usual = Run(backbone=backbone, seed=seed)
        return replace(usual, fit=replace(usual.fit, epochs=1)) if scale.quick else usual

    seeds = seeds or (scale.core_seeds[:1] if scale.quick else scale.core_seeds)
    return {name: tuple(run(backbone, seed) for seed in seeds) for name, backbone in BACKBONES.items()}


def main(scale: Scale, options: Options) -> None:
    """Compute what is not there yet, then write and show the table."""
    places, rows = options.places, QUICK_ROWS if scale.quick else None
    made = experiment(scale, options.seeds)
    missing = [run for runs in made.values() for run in runs if result(run, places) is None]
    if missing:
        scenario_wise.wheel(places)
    pool.each(partial(compute, places=places, rows=rows), missing, NAME, workers=options.workers, console=console)
    found = {name: [_known(run, places) for run in runs] for name, runs in made.items()}
    text = markdown(found, options, [run.seed for run in next(iter(made.values()))])
    with staged(places.results / f"{NAME}.md") as file:
        file.write_text(text)
    write_json(places.results / f"{NAME}.json", rounded(to_plain(found)))
    console.print(Markdown(text))


def compute(run: Run, places: Places, rows: int | None) -> None:
    """The work of one process of a pool. `rows`: of each part, only so many, for a rehearsal."""
    result = trained(run, _films(places), rows)
    write_json(_path(run, places), {"run": to_plain(run), "result": rounded(to_plain(result))})


def result(run: Run, places: Places) -> Found | None:
    """What a run came to; None before it ran."""
    path = _path(run, places)
    return from_plain(Found, read_json(path)["result"]) if path.is_file() else None


def markdown(found: Mapping[str, Sequence[Found]], options: Options, seeds: Sequence[int]) -> str:
    """The table, ours beside the published numbers."""
    told = f"{datetime.now(UTC):%Y-%m-%d}, seeds {', '.join(map(str, seeds))}, commit {commit()}, {machine()}"
    lines = [f"# {NAME}", "", "Do our backbones reach what was published for them on MovieLens-1M?", ""]
    lines += [f"`{options.command}`, {told}. Means over seeds, 95 % intervals; published values in brackets.", ""]
    head = ["backbone", "AUC", "against published", "log loss", *(f"AUC {domain}" for domain in DOMAINS)]
    lines += table([*head, "epochs", "s", "parameters"], [_line(name, runs) for name, runs in found.items()])
    met = [name for name in PUBLISHED if name in found and name not in DEFECTS]
    lines += ["", f"Published without a known defect: {', '.join(met)}; the bar for these is {-BAR:+.3f} AUC.", ""]
    lines += [f"- {name}: {why}." for name, why in DEFECTS.items() if name in found]
    return "\n".join(lines) + "\n"


def _line(name: str, runs: Sequence[Found]) -> list[str]:
    known = PUBLISHED.get(name)
    overall = statistics.over_seeds([run.auc for run in runs])
    difference = "-" if known is None else f"{overall.mean - known.auc:+.4f}"
    return [
        name,
        _told(overall, known.auc if known else None),
        difference,
        _told(statistics.over_seeds([run.log_loss for run in runs]), known.log_loss if known else None),
        *(
            _told(statistics.over_seeds([run.domain_auc[at] for run in runs]), known.domain_auc[at] if known else None)
            for at in range(len(DOMAINS))
        ),
        f"{sum(run.epochs for run in runs) / len(runs):.1f}",
        f"{sum(run.seconds for run in runs) / len(runs):.0f}",
        f"{runs[0].parameters:,}",
    ]


def _told(interval: statistics.Interval, published: float | None) -> str:
    half = "" if interval.high is None else f" ± {interval.high - interval.mean:.4f}"
    return f"{interval.mean:.4f}{half}" + ("" if published is None else f" ({published:.4f})")


def _known(run: Run, places: Places) -> Found:
    found = result(run, places)
    assert found is not None
    return found


@lru_cache(maxsize=1)
def _films(places: Places) -> Films:
    return scenario_wise.read(scenario_wise.wheel(places))


def _path(run: Run, places: Places) -> Path:
    return places.cells / f"{NAME}-{plain_hash(run)[:16]}.json"


if __name__ == "__main__":
    main(*arguments(__doc__, None))
