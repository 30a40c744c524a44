"""The stages of the loop, each a function of one workspace that skips what has not changed.

A stage notes what it was made from (its configuration, the state of the files that it reads, the code that made it) in
`<workspace>/stamps/`; where that is what it would be made from again, nothing is done.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import Dataset, Schema
from feature_repo.files import locked, state_of
from feature_repo.store import EMBEDDED
from feature_repo.workspace import REPOSITORY, Workspace

if TYPE_CHECKING:
    from serving.feedback_export import Exported

BEGINNING, END = datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)  # of all times
MODELS = ("ple", "ple_scene_ids", "larr")
# Model -> its service. Each service holds what those before hold; the last one is there once a language model was asked
# about users and scenarios (`knowledge`).
SERVICES = {**{model: model for model in MODELS}, "llm4msr": "llm4msr", "larr_llm4msr": "llm4msr"}
IMPRESSIONS = 1000  # that a proof compares at least
Report = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class Stamp:
    """What one stage's result was made from."""

    path: Path
    state: str

    @staticmethod
    def of(workspace: Workspace, stage: str, **state: object) -> Stamp:
        return Stamp(workspace.root / "stamps" / f"{stage}.json", json.dumps(state, sort_keys=True, default=str))

    @property
    def fresh(self) -> bool:
        return self.path.exists() and self.path.read_text() == self.state

    def clear(self) -> None:
        """Before work begins: what an interrupted stage leaves behind is never taken for a finished one."""
        self.path.unlink(missing_ok=True)

    def set(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.state)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Feast's own printing and the deprecations of its libraries off the screen; errors still come through."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def data(workspace: Workspace, choice: Choice, report: Report) -> bool:
    """Raw log -> source tables and behaviour statistics. Returns whether anything was done."""
    made_by = code_of(
        *("feature_repo/datasets", "feature_repo/scenes.py"),
        *(f"feature_repo/{name}.py" for name in ("aggregates", "counted", "like_minded")),
    )
    stamp = Stamp.of(workspace, "data", config=repr(choice.config), files=state_of(choice.files), code=made_by)
    if stamp.fresh:
        return False
    stamp.clear()

    def forget() -> None:
        _forget_prompted(workspace)
        _forget_online(workspace)

    busy = (
        f"clicks are being streamed into {workspace.root}, whose online store other data would empty: stop "
        "`scenerank stream`, and let it run with --again when the store is filled"
    )
    with locked(workspace.stream_lock, shared=False, busy=busy):
        _write(workspace, choice.load(report), report, forget)
    stamp.set()
    return True


def feedback(workspace: Workspace, engine: Any, wait: timedelta, report: Report) -> Exported:
    """What became of answers -> rows of the log, and statistics that count them. Views have to be filled again.

    Args:
        engine: SQLAlchemy's, of the feedback log.
        wait: how long after an answer its outcome counts as known.
    """
    from serving.feedback_export import grown

    dataset, exported = grown(workspace, engine, datetime.now(UTC), wait)
    if exported.rows:
        _write(workspace, dataset, report)
    return exported


def _write(workspace: Workspace, dataset: Dataset, report: Report, first: Callable[[], None] = lambda: None) -> None:
    """Source tables, and statistics: those of days before the first that changed are kept.

    Args:
        first: is called when the data set is valid, before its tables take the place of the old ones.
    """
    from feature_repo import aggregates

    tables = len(dataset.schema.statistics) + dataset.schema.like_minded + 1
    done = iter(range(tables))
    with aggregates.carried(workspace) as before:
        dataset.write(workspace.sources, first)
        aggregates.build(workspace, lambda table: report("behaviour statistics", next(done), tables), before)
    report("behaviour statistics", tables, tables)


def _forget_online(workspace: Workspace) -> None:
    """Empty the online store before other data take the place of the old: it would go on answering for ids that are
    gone. The registry stays; the store has to be applied again."""
    if not workspace.feature_store_yaml.exists():
        return
    from feature_repo.store import open_store, tear_down

    with quiet():
        tear_down(open_store(workspace))
    workspace.feature_store_yaml.unlink()
    workspace.stream.unlink(missing_ok=True)
    shutil.rmtree(workspace.served, ignore_errors=True)
    Stamp.of(workspace, "materialize").clear()


def _forget_prompted(workspace: Workspace) -> None:
    """What a language model was told of the old log is not so in the new one. What it said is kept, prompt by prompt,
    and asked for again where a prompt is the same."""
    from feature_repo.store import drop, open_store
    from trainers.language.verbaliser import forget_usual_words

    forget_usual_words(workspace)
    beside = [f for space in columns.PROMPTED for f in workspace.beside.glob(f"{columns.beside(space, '*')}.parquet")]
    if beside and workspace.feature_store_yaml.exists():
        with quiet():
            drop(open_store(workspace), [file.stem for file in beside])
    for file in [*beside, *(workspace.knowledge / f"{space}.parquet" for space in columns.PROMPTED)]:
        file.unlink(missing_ok=True)


def apply(workspace: Workspace, profile: str = EMBEDDED) -> Any:
    """Definitions -> registry. Returns the store."""
    import feast  # noqa: F401  # it sets warning filters of its own when first imported, so it goes before `quiet`

    from feature_repo import store

    with quiet():
        return store.apply(workspace, profile)


def materialize(workspace: Workspace, store: Any, end: datetime | None = None, report: Report | None = None) -> bool:
    """Newest values of every view up to `end` (default: the end of the log) -> online store."""
    from feature_repo.store import online_views

    end = end or Schema.load(workspace.schema).split.end
    folders = (workspace.sources, workspace.knowledge, workspace.beside)
    files = [file for folder in folders for file in folder.glob("*.parquet")]
    online = workspace.feature_store_yaml.read_text()
    code = code_of("feature_repo")
    stamp = Stamp.of(workspace, "materialize", end=end, files=state_of(files), store=_digest(online), code=code)
    if stamp.fresh:
        return False
    stamp.clear()
    views = online_views(store)
    for done, view in enumerate(views):
        if report is not None:
            report(f"materialise {view}", done, len(views))
        with quiet():
            _forget_other_versions(workspace, store, view)
            store.materialize(_start(store, view, end), end, feature_views=[view])
    if report is not None:
        report("materialise", len(views), len(views))
    stamp.set()
    return True


def _forget_other_versions(workspace: Workspace, store: Any, view: str) -> None:
    """An online store keeps the newest value; of another version than the one in use, however new, none is wanted."""
    from feature_repo.store import empty
    from trainers.knowledge import served_from, version_in

    if view not in columns.SPACES:
        return
    online = _digest(f"{store.project} {store.config.online_store!r}")  # it may hold a password
    stamp = Stamp.of(workspace, f"online_{view}", version=version_in(served_from(workspace, view), view), store=online)
    if stamp.path.exists() and not stamp.fresh:
        empty(store, view)
    stamp.set()


def _start(store: Any, view: str, end: datetime) -> datetime:
    """From when on values of a view can still be alive at `end`: older ones would be served as missing anyway."""
    ttl = store.get_feature_view(view).ttl
    return end - ttl if ttl else BEGINNING


def service_name(store: Any, model: str) -> str:
    """The name of a model's current service. Raises ValueError for an unknown model or before `apply`."""
    from feature_repo import services

    if model not in SERVICES:
        raise ValueError(f"no model {model!r}; there are {', '.join(SERVICES)}")
    service = getattr(services, SERVICES[model])
    if service is None:
        raise ValueError(f"{model} needs what a language model makes of users and scenarios: run `scenerank knowledge`")
    return registered(store, service.name)


def registered(store: Any, service: str) -> str:
    """The name of a service, which the store knows. Raises ValueError."""
    if service not in (known := sorted(service.name for service in store.list_feature_services())):
        raise ValueError(f"service {service} is not registered: there are {', '.join(known)}; run `scenerank apply`")
    return service


def training_set(workspace: Workspace, store: Any, report: Report) -> Path:
    """The pull that all models train on: the widest service from the first training row to the end of the log."""
    from feature_repo import services
    from trainers.training_set import Pull, backfill

    split = Schema.load(workspace.schema).split
    widest = [model for model, service in SERVICES.items() if getattr(services, service) is not None][-1]
    pull = Pull(service=service_name(store, widest), start=split.train, end=split.end)
    with quiet():
        return backfill(workspace, store, pull, lambda done, total: report("point-in-time pull", done, total))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One training run.

    Args:
        model: which of `SERVICES`.
        size: of the recipe.
        backbone: in place of PLE, by its kind; the bundle is then called `<model>_<backbone>`.
        seed: of weights, order of rows and dropout.
    """

    model: str
    size: str = "default"
    backbone: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the bundle."""
        return self.model if self.backbone is None else f"{self.model}_{self.backbone}"


def train(workspace: Workspace, store: Any, pulled: Path, options: TrainOptions, report: Report) -> Path:
    """A training set -> a bundle, in `<workspace>/bundles/<name>`. Returns its folder.

    Raises ValueError for an unknown model, size or backbone.
    """
    from feature_repo import services
    from trainers import rank
    from trainers.training_set import narrow, read_part

    service, recipe = planned(store, options)
    folder = workspace.bundles / options.name
    stamp = Stamp.of(
        workspace,
        f"train-{options.name}",
        options=repr(options),
        pulled=(pulled / "state.json").read_text(),
        code=code_of("trainers", "feature_repo"),
    )
    if stamp.fresh and folder.exists():
        return folder
    stamp.clear()
    schema = Schema.load(workspace.schema)
    features = services.feature_references(getattr(services, SERVICES[options.model]))
    tables = {part: narrow(read_part(workspace, pulled, part), features) for part in ("train", "valid", "test")}
    oracle = workspace.source("oracle")
    trained = rank.train(
        rank.Parts(**tables, oracle=pq.read_table(oracle) if oracle.exists() else None),
        schema,
        matrices(workspace),
        recipe,
        rank.Provenance(service=service, features=features, trained_until=schema.split.valid),
        seed=options.seed,
        progress=lambda done, planned, note: report(f"train {options.name}: {note}", done, planned),
    )
    trained.bundle.save(folder)
    stamp.set()
    return folder


def prove(workspace: Workspace, store: Any, name: str, impressions: int, report: Report) -> Any:
    """Compare a bundle's online and offline values, and write what came out into its folder. Returns the certificate.

    A certificate that still holds and covers all that was served since is not made again.
    """
    from serving import certificate
    from serving import prove as proofs
    from trainers import bundle as bundles

    folder = workspace.bundles / name
    bundle = bundles.load(folder)
    with suppress(certificate.Unproven):
        found = certificate.check(folder, bundle)
        if found.impressions >= impressions and found.served == len(proofs.served_rows(workspace, bundle)):
            return found
    with quiet():
        made = proofs.prove(
            workspace, store, bundle, impressions, lambda done, total: report(f"prove {name}: requests", done, total)
        )
    made.save(folder)
    return made


def planned(store: Any, options: TrainOptions) -> tuple[str, Any]:
    """The service and the recipe of a run. Raises ValueError for an unknown model, size or backbone."""
    from trainers import recipes
    from trainers.models.backbones import by_kind

    service = service_name(store, options.model)
    if options.size not in get_args(recipes.Size):
        raise ValueError(f"no recipe of size {options.size!r}; there are {', '.join(get_args(recipes.Size))}")
    made = {
        "ple": recipes.ple,
        "ple_scene_ids": recipes.ple_scene_ids,
        "larr": recipes.larr,
        "llm4msr": recipes.llm4msr,
        "larr_llm4msr": recipes.larr_llm4msr,
    }[options.model](options.size)  # type: ignore[arg-type]  # one of the literal's words: checked above
    return service, made if options.backbone is None else recipes.on_backbone(made, by_kind(options.backbone))


def index(workspace: Workspace, pulled: Path, seed: int, report: Report) -> Path:
    """A training set -> towers and FAISS index, in `<workspace>/index`. Returns its folder."""
    from trainers import index as artefacts
    from trainers.knowledge import POI_SPACE
    from trainers.retrieval import RetrievalConfig, RetrievalData, build
    from trainers.training_set import read_part

    state = (pulled / "state.json").read_text()
    stamp = Stamp.of(workspace, "index", seed=seed, pulled=state, code=code_of("trainers", "feature_repo"))
    if stamp.fresh and workspace.index.exists():
        return workspace.index
    stamp.clear()
    schema = Schema.load(workspace.schema)
    parts = {part: read_part(workspace, pulled, part) for part in ("train", "valid", "test")}
    retrieval = RetrievalData(
        schema=schema,
        **parts,
        pois=pq.read_table(workspace.source("pois")),
        text=matrices(workspace).get(POI_SPACE),
        earlier=pq.read_table(
            workspace.source("impressions"),
            columns=[columns.POI_ID, columns.EVENT_TIMESTAMP],
            filters=[(columns.CLICK, "==", 1), (columns.EVENT_TIMESTAMP, "<", schema.split.train)],
        ),
    )
    artefact = build(
        retrieval, RetrievalConfig(), seed, lambda done, planned, note: report(f"train towers: {note}", done, planned)
    )
    artefacts.save(artefact, workspace.index)
    stamp.set()
    return workspace.index


def matrices(workspace: Workspace) -> Mapping[str, Any]:
    """Every vector space that was embedded."""
    from trainers.knowledge import load_matrix

    paths = {space: workspace.knowledge / f"{space}.parquet" for space in columns.SPACES}
    return {space: load_matrix(path) for space, path in paths.items() if path.exists()}


def code_of(*places: str) -> str:
    """A hash over the sources (and tables) at these places of the project."""
    root = REPOSITORY.parent
    files = [
        f for p in places for f in ([root / p] if (root / p).is_file() else sorted((root / p).rglob("*.[pc][ys]*")))
    ]
    return _digest("".join(_digest(f.read_text(errors="replace")) for f in files if "__pycache__" not in f.parts))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
