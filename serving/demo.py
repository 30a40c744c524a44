"""The main job: the whole loop on one dataset, from the raw log to a ranked list and the models' test metrics."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns
from feature_repo.datasets.choose import Choice
from feature_repo.datasets.schema import Schema
from feature_repo.workspace import Workspace
from serving import screen, stages, stages_language
from serving.client import Access, Asker, Recommender, Wish

START_SECONDS, ABORT_SECONDS = 60.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run does.

    Args:
        language_model: "smollm2" (embedded), a folder, or a Hugging Face id.
        recipe_size: of the models' recipes.
    """

    choice: Choice
    models: tuple[str, ...]
    language_model: str = "smollm2"
    recipe_size: str = "default"
    seed: int = 0


def build(workspace: Workspace, job: Job) -> None:
    """Data, embeddings, store, training set, rankers and index; what has not changed is not done again."""
    with screen.stage("source tables and behaviour statistics") as report:
        stages.data(workspace, job.choice, report)
    with screen.stage("embed texts with the language model") as report:
        stages_language.embed(workspace, stages_language.EmbedOptions(model=job.language_model), report)
    with screen.stage("apply the feature repository"):
        store = stages.apply(workspace)
    with screen.stage("materialise the online store") as report:
        stages.materialize(workspace, store, report=report)
    with screen.stage("pull the point-in-time training set", "rows") as report:
        pulled = stages.training_set(workspace, store, report)
    for model in job.models:
        with screen.stage(f"train {model}") as report:
            options = stages.TrainOptions(model=model, size=job.recipe_size, seed=job.seed)
            stages.train(workspace, store, pulled, options, report)
    for model in job.models:
        with screen.stage(f"prove that {model} reads the same online as in training") as report:
            certificate = stages.prove(workspace, store, model, stages.IMPRESSIONS, report)
        if not certificate.valid:
            screen.console.print(screen.differences_table(certificate))
            raise ValueError(f"{model} would read other values online than in training: see above")
    with screen.stage("train the towers and build the index") as report:
        stages.index(workspace, pulled, job.seed, report)


def run_of(workspace: Workspace, model: str, seed: int) -> screen.Run:
    """The test metrics in a bundle's manifest."""
    return screen.Run(model, seed, _json(workspace.bundles / model / "manifest.json")["metrics"])


def index_metrics(workspace: Workspace) -> dict[str, Any]:
    """What the index artefact says of itself."""
    return _json(workspace.index / "manifest.json")


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def print_metrics(runs: Sequence[screen.Run], workspace: Workspace, dataset: str) -> None:
    """The models side by side on the test part, by scenario, and what retrieval finds."""
    schema = Schema.load(workspace.schema)
    start, end = schema.split.bounds("test")
    seeds = sorted({run.seed for run in runs})
    title = f"{dataset}, test part {start:%Y-%m-%d} to {end:%Y-%m-%d} (held out by time), seeds {seeds}"
    screen.console.print()
    screen.console.print(screen.metrics_table(runs, title))
    screen.console.print(f"[dim]{schema.notes}[/]")
    screen.console.print(screen.scenario_table(runs))
    screen.console.print(screen.retrieval_table(index_metrics(workspace)))


@contextmanager
def server(workspace: Workspace, model: str) -> Iterator[str]:
    """A server process of its own on a free port, stopped at the end. Yields its address.

    Raises RuntimeError if it does not start, or does not stop, within `START_SECONDS`; it is killed then.
    """
    command = [sys.executable, "-m", "serving.cli", "serve", "--workspace", str(workspace.root), "--bundle", model]
    process = subprocess.Popen([*command, "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        yield _address(process)
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
    except BaseException as error:
        _abort(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"the server did not stop within {START_SECONDS:.0f} s and was killed") from error
        raise


def _abort(process: subprocess.Popen[str]) -> None:
    """End a server at once; where PYTHONFAULTHANDLER is set it says where it stood."""
    process.send_signal(signal.SIGABRT)
    try:
        process.wait(ABORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    """Read the server's first line, which names where it listens."""
    assert process.stdout is not None
    overdue = threading.Timer(START_SECONDS, process.kill)
    overdue.start()
    try:
        for line in process.stdout:
            if found := re.search(r"on (\S+:\d+)", line):
                return found[1]
    finally:
        overdue.cancel()
    raise RuntimeError(f"the server did not start (exit code {process.wait()}); its message stands above")


@dataclass(frozen=True)
class Moment:
    """A request of the log, as a client would send it, with the POIs that were shown then."""

    asker: Asker
    poi_ids: tuple[str, ...]


def last_moment(workspace: Workspace) -> Moment:
    """The last request of the log whose user clicked nothing from then on: all that is stored was there before it."""
    schema = Schema.load(workspace.schema)
    log = pq.read_table(workspace.source("impressions"))
    row = log.slice(_last_unanswered(log), 1).to_pylist()[0]
    shown = log.filter(pc.equal(log[columns.REQUEST_ID], row[columns.REQUEST_ID]))
    place = (row[columns.LATITUDE], row[columns.LONGITUDE])
    asker = Asker(
        user_id=row[columns.USER_ID],
        scenario_id=row[columns.SCENARIO_ID],
        time=_aware(row[columns.EVENT_TIMESTAMP]),
        place=None if None in place else place,
        scene={f.name: row[f.name] for f in schema.request_fields if row[f.name] is not None},
    )
    return Moment(asker, tuple(dict.fromkeys(shown[columns.POI_ID].to_pylist())))


def _last_unanswered(log: pa.Table) -> int:
    """The row of the newest impression that no click of its user follows; of the newest one where there is none."""
    clicks = log.filter(pc.equal(log[columns.CLICK], 1)).group_by(columns.USER_ID)
    last = clicks.aggregate([(columns.OUTCOME_TIMESTAMP, "max")])
    at = pc.index_in(log[columns.USER_ID], value_set=last[columns.USER_ID].combine_chunks())
    followed = pc.greater_equal(last[f"{columns.OUTCOME_TIMESTAMP}_max"].take(at), log[columns.EVENT_TIMESTAMP])
    times = pc.if_else(pc.fill_null(followed, False), None, log[columns.EVENT_TIMESTAMP])
    times = log[columns.EVENT_TIMESTAMP] if times.null_count == len(log) else times
    row: int = pc.index(times, pc.max(times)).as_py()
    return row


def show(workspace: Workspace, model: str, limit: int = 10) -> None:
    """Start the server, ask it once to rank what the log showed and once to recommend, and print both answers."""
    moment = last_moment(workspace)
    access = Access(timeout_seconds=30.0)
    with server(workspace, model) as address, Recommender(address, access) as recommender:
        wish = Wish(limit=limit, details=True)
        ranked = recommender.rank(moment.asker, moment.poi_ids, wish)
        found = recommender.recommend(moment.asker, wish)
    asker = moment.asker
    assert asker.time is not None
    local = asker.time.astimezone(_zone(workspace))
    screen.console.print(f"\n[bold]{asker.user_id}[/] in [bold]{asker.scenario_id}[/] at {local:%A %d %B %Y, %H:%M}")
    screen.console.print(screen.scene_line(found))
    screen.console.print(screen.ranking_table(ranked, f"Rank: the {len(moment.poi_ids)} places that the log showed"))
    screen.console.print(screen.ranking_table(found, "Recommend: the best of all places, found by the index"))


def _zone(workspace: Workspace) -> ZoneInfo:
    return ZoneInfo(Schema.load(workspace.schema).timezone)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.astimezone()
