"""Which prompt, which states, how long, in which words, of which version of the model: what is worth asking?

One thousand people of the development city, with what was known of them before the valid part: nothing of the test
part, nobody of a reported seed. One factor at a time is varied around the default (the prompt `interests` in the
project's words, the state of its last token, 160 tokens at most, eight places, bfloat16): all of them together would
take days, this takes about 45 minutes of one core, stage 1 of the tuning left aside. What a model writes is slow and
read of two hundred people only. The versions of the model are those that can be had: all releases of the wheel carry
one file, so other versions are that file in float32, packed once more in four bits, and after stage 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import combinations

from rich.markdown import Markdown

from benchmarks.experiments import pool, worlds
from benchmarks.experiments.city import DEVELOPMENT_SEED, Scale
from benchmarks.experiments.places import Places
from benchmarks.experiments.prompting.analysis import CONTROLS, Findings, Line, Pair, analyse
from benchmarks.experiments.prompting.cells import PromptCell, Store, compute_cell, once
from benchmarks.experiments.prompting.report import write
from benchmarks.experiments.prompting.versions import Repacked, repack
from benchmarks.experiments.run import Options, arguments, console, prepare, train_model
from benchmarks.experiments.tuned import TunedModel
from benchmarks.experiments.vectors import LanguageModel
from benchmarks.report import commit, machine
from trainers.language.model import MINILM
from trainers.language.poolings import POI_MEAN

NAME = "msr_prompts"
QUESTION = "Which prompt and which states tell most of people's tastes, and what do other words and versions change?"
USUAL = "interests"
WORDINGS = {USUAL: 3, "history": 2, "sentences": 2, "tell": 2}
SCENARIOS = ("brief", "facts", "contrast")
MEANS = "mean over POIs"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is read: lines about users, and pairs of readings that are compared.

    Args:
        control: what prompts have to beat.
    """

    control: PromptCell
    lines: tuple[Line, ...]
    pairs: tuple[Pair, ...]

    @property
    def cells(self) -> list[PromptCell]:
        compared = (line for pair in self.pairs for line in (pair.a, pair.b))
        return once([self.control, *(line.cell for line in (*self.lines, *compared))])

    def rehearsed(self) -> Study:
        """The first line and the first pair of each group."""
        lines = {line.group: line for line in reversed(self.lines)}
        pairs = {pair.group: pair for pair in reversed(self.pairs)}
        return replace(self, lines=tuple(reversed(lines.values())), pairs=tuple(reversed(pairs.values())))


def study(scale: Scale, seed: int = DEVELOPMENT_SEED) -> Study:
    """All that is read, or, of few people, one of each kind."""
    many, few = (16, 8) if scale.quick else (1000, 200)
    usual = PromptCell(world=scale.world(seed), users=many, tokens=4 if scale.quick else 32)
    means = replace(usual, pooling=POI_MEAN)
    versions = _versions(scale)
    lines = [
        *_structures(usual),
        *_means(means),
        *_lengths(usual),
        *_poolings(usual, means, few),
        *(_line("versions", f"{USUAL}, {name}", replace(usual, model=model)) for name, model in versions.items()),
        *(_line("versions", f"{MEANS}, {name}", replace(means, model=model)) for name, model in versions.items()),
    ]
    made = Study(
        control=means,
        lines=tuple(lines),
        pairs=(*_reworded(usual), *_other_versions(usual, means, versions, few), *_scenarios(usual)),
    )
    return made.rehearsed() if scale.quick else made


def _line(group: str, name: str, cell: PromptCell, users: int | None = None) -> Line:
    return Line(group=group, name=name, cell=cell, users=users or cell.users)


def _versions(scale: Scale) -> dict[str, LanguageModel]:
    """Other versions of the embedded model."""
    tuned = LanguageModel(model=scale.language_model) if scale.language_model else scale.pretrained
    return {"four bits again": Repacked(), "stage 1": tuned}


def _worded(cell: PromptCell, structure: str) -> list[Line]:
    """All wordings of one prompt, the project's own first."""
    lines = [_line("structures", structure, replace(cell, structure=structure))]
    for wording in range(2, WORDINGS[structure] + 1):
        name = f"{structure}, wording {wording}"
        lines.append(_line("wordings", name, replace(cell, structure=structure, wording=wording)))
    return lines


def _structures(usual: PromptCell) -> list[Line]:
    lines = [line for structure in WORDINGS for line in _worded(usual, structure)]
    return sorted(lines, key=lambda line: line.group)


def _means(means: PromptCell) -> list[Line]:
    minilm = replace(means, model=LanguageModel(model=MINILM.name))
    return [_line(CONTROLS, MEANS, means), _line(CONTROLS, f"{MEANS}, MiniLM", minilm)]


def _lengths(usual: PromptCell) -> list[Line]:
    history = replace(usual, structure="history")
    return [
        _line("lengths", "history, 80 tokens", replace(history, limit=80)),
        _line("lengths", f"{USUAL}, 80 tokens", replace(usual, limit=80)),
        *(_line("lengths", f"history, {liked} places", replace(history, liked=liked)) for liked in (4, 2)),
    ]


def _poolings(usual: PromptCell, means: PromptCell, few: int) -> list[Line]:
    """Of the same few people, whatever is read."""
    written = replace(usual, pooling="generated-mean", users=few)
    tell = replace(written, structure="tell")
    cells = {
        f"{USUAL}, mean of {written.tokens} written": written,
        f"{USUAL}, last of {written.tokens} written": replace(written, pooling="generated-last"),
        f"{USUAL}, mean of 8 written": replace(written, tokens=8),
        f"tell, mean of {tell.tokens} written": tell,
        f"tell, last of {tell.tokens} written": replace(tell, pooling="generated-last"),
        f"{USUAL}, last of the prompt": usual,
        "tell, last of the prompt": replace(usual, structure="tell"),
        MEANS: means,
    }
    return [_line("poolings", name, cell, few) for name, cell in cells.items()]


def _reworded(usual: PromptCell) -> list[Pair]:
    within = [
        Pair(group="wordings", a=a, b=b)
        for structure in WORDINGS
        for a, b in combinations(_worded(usual, structure), 2)
    ]
    first, *others = (_worded(usual, structure)[0] for structure in WORDINGS)
    return [*within, *(Pair(group="structures", a=first, b=other) for other in others)]


def _other_versions(
    usual: PromptCell, means: PromptCell, versions: Mapping[str, LanguageModel], few: int
) -> list[Pair]:
    pairs = [
        Pair(
            group="versions",
            a=_line("versions", name, cell),
            b=_line("versions", f"{name}, {version}", replace(cell, model=model)),
        )
        for name, cell in ((USUAL, usual), (MEANS, means))
        for version, model in versions.items()
    ]
    exact = _line("versions", f"{USUAL}, float32", replace(usual, dtype="float32", users=few))
    return [*pairs, Pair(group="versions", a=_line("versions", USUAL, usual, few), b=exact)]


def _scenarios(usual: PromptCell) -> list[Pair]:
    def line(structure: str, wording: int) -> Line:
        cell = replace(usual, level="scenario", structure=structure, wording=wording)
        return _line("scenarios", structure if wording == 1 else f"{structure}, wording {wording}", cell)

    within = [Pair(group="scenarios", a=line(name, 1), b=line(name, 2)) for name in SCENARIOS]
    across = [Pair(group="scenarios", a=line(a, 1), b=line(b, 1)) for a, b in combinations(SCENARIOS, 2)]
    return [*within, *across]


def main(scale: Scale, options: Options) -> None:
    """Read what was not read yet, then write and show the tables. Raises SystemExit for more seeds than one."""
    if len(options.seeds or ()) > 1:
        raise SystemExit("--seeds: these readings are of one city; give one seed")
    made, places, store = study(scale, *(options.seeds or ())[:1]), options.places, Store(options.places)
    prepare([made.control.world], options)
    make_models(made.cells, options)
    missing = [cell for cell in made.cells if not store.has(cell)]
    pool.each(partial(compute_cell, places=places), missing, "readings", workers=options.workers, console=console)
    told = f"`{options.command}`, {datetime.now(UTC):%Y-%m-%d}, city of seed {made.control.world.seed}, "
    text = write(NAME, [QUESTION, "", f"{told}commit {commit()}, {machine()}."], findings(made, places), places)
    console.print(Markdown(text))
    console.print(f"[green]✓[/] {places.results / NAME}.md, .json, .png\n", highlight=False)


def findings(made: Study, places: Places) -> Findings:
    return analyse(made.lines, made.pairs, made.control, places)


def make_models(cells: Sequence[PromptCell], options: Options) -> None:
    """Have every version of the model that is not there yet; a stage of tuning takes minutes."""
    places = options.places
    models = {worlds.plain_hash(cell.model): cell.model for cell in cells}.values()
    for model in models:
        if isinstance(model, Repacked):
            repack(model, places)
    stages = [stage for model in models if isinstance(model, TunedModel) for stage in model.stages()]
    waiting = [stage for stage in stages if not stage.is_at_hand(places)]
    prepare([stage.world for stage in waiting], options)
    pool.each(partial(train_model, places=places), waiting, "language models", workers=1, fresh=True, console=console)


if __name__ == "__main__":
    main(*arguments(__doc__, None))
