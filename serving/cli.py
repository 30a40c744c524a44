"""`scenerank`: every verb of the loop, one a stage; imports stand inside the verbs, so each loads what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded; spinning threads starve each other

import typer

from feature_repo.datasets.choose import DatasetName, Options, choose, workspace_name
from feature_repo.store import EMBEDDED
from feature_repo.workspace import DEFAULT, Workspace, activate
from serving import cli_admin, cli_ask, cli_language, cli_serve, cli_store
from serving.options import (
    BundleOption,
    FromOption,
    LanguageModelOption,
    ModelOption,
    SizeOption,
    UsersOption,
    WorkspaceOption,
    explained,
    root_of,
    utc,
    workspace_of,
)
from serving.stages import IMPRESSIONS, MODELS

app = typer.Typer(
    help="Ranks places for people, in the moment. The verbs below are the stages of one loop; `run` does them all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)


def seed_roots(base: Path, seed: int, seeds: int, named: bool) -> dict[int, Path]:
    """A workspace for each seed: beside the base, with the seed in its name; a single named workspace is itself."""
    if seeds == 1 and named:
        return {seed: base}
    return {at: base if at == 0 else base.with_name(f"{base.name}-seed{at}") for at in range(seed, seed + seeds)}


@app.command()
def run(
    dataset: DatasetName,
    size: SizeOption = "default",
    users: UsersOption = None,
    seed: Annotated[int, typer.Option(help="Draws the sample and the initial weights.")] = 0,
    seeds: Annotated[int, typer.Option(help="Run this many seeds and show mean and spread.")] = 1,
    source: FromOption = None,
    workspace: WorkspaceOption = None,
    models: Annotated[str, typer.Option(help="Comma-separated; the last one is served.")] = ",".join(MODELS),
    language_model: LanguageModelOption = "smollm2",
) -> None:
    """The whole loop: raw log, features, training set, rankers, index, a served ranking and the test metrics."""
    from serving import demo, screen

    names = tuple(models.split(","))
    options = Options(size=size, users=users, seed=seed, source=source)
    base = root_of(workspace, workspace_name(dataset, options))
    with explained():
        choice = choose(dataset, options)
        roots = seed_roots(base, seed, seeds, named=workspace is not None)
        if seeds > 1:
            # Feast's definitions belong to one workspace a process, so every seed gets a process of its own.
            same = ["run", dataset.value, "--size", size, "--models", models, "--language-model", language_model]
            same += ["--users", str(users)] if users is not None else []
            same += ["--from", str(source)] if source is not None else []
            for at, root in roots.items():
                screen.console.rule(f"seed {at}")
                one = [*same, "--seed", str(at), "--workspace", str(root)]
                if subprocess.run([sys.executable, "-m", "serving.cli", *one]).returncode:
                    raise ValueError(f"seed {at} did not end well; what it said stands above")
        else:
            target = activate(roots[seed])
            demo.build(target, demo.Job(choice=choice, models=names, seed=seed, language_model=language_model))
            demo.show(target, names[-1])
        runs = [demo.run_of(Workspace(root), name, at) for at, root in roots.items() for name in names]
        demo.print_metrics(runs, Workspace(roots[seed]), dataset.value)
        serve = f"scenerank serve --bundle {names[-1]} --workspace {roots[seed]}"
        screen.console.print(f"all of it is in {roots[seed]}; `{serve}` answers on 127.0.0.1:50051", soft_wrap=True)


@app.command()
def data(
    dataset: DatasetName,
    size: SizeOption = "default",
    users: UsersOption = None,
    days: Annotated[int | None, typer.Option(help="Days of the city's log.")] = None,
    pois: Annotated[int | None, typer.Option(help="POIs of the city.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    source: FromOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Raw log -> source tables, and behaviour statistics as of every day."""
    from serving import screen, stages

    with explained(), screen.stage(f"source tables of {dataset.value}") as report:
        options = Options(size=size, users=users, days=days, pois=pois, seed=seed, source=source)
        choice = choose(dataset, options)
        target = workspace_of(workspace, workspace_name(dataset, options))
        stages.data(target, choice, report)
    if target.root != DEFAULT:
        screen.console.print(f"[dim]the next verbs find it by --workspace {target.root}[/]")


for verb in cli_language.VERBS:
    app.command()(verb)


@app.command()
def apply(
    profile: Annotated[
        str, typer.Option(help="Which stores: embedded, or a file of feature_repo/profiles.")
    ] = EMBEDDED,
    workspace: WorkspaceOption = None,
) -> None:
    """Register the definitions with Feast; services of older bundles stay."""
    from serving import screen, stages

    with explained():
        store = stages.apply(workspace_of(workspace), profile)
        for service in sorted(store.list_feature_services(), key=lambda s: s.name):
            screen.console.print(f"{service.name}: {len(service.feature_view_projections)} views")


@app.command()
def diff(workspace: WorkspaceOption = None) -> None:
    """What `apply` would change, field by field. Exit status 1 where there is anything."""
    from feature_repo import diff as differences
    from feature_repo.store import open_store

    with explained():
        found = differences.changes(open_store(workspace_of(workspace)))
    for change in found:
        typer.echo(str(change))
    raise typer.Exit(1 if found else 0)


@app.command()
def materialize(
    to: Annotated[datetime | None, typer.Option(help="UTC; the end of the log by default.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Newest values of every view -> online store."""
    from feature_repo.store import open_store
    from serving import screen, stages

    with explained(), screen.stage("materialise") as report:
        target = workspace_of(workspace)
        stages.materialize(target, open_store(target), utc(to), report)


for command in (*cli_store.VERBS, *cli_admin.VERBS):
    app.command()(command)


@app.command()
def backfill(
    model: ModelOption = "larr",
    service: Annotated[
        str | None, typer.Option(help="A registered FeatureService by its name, in place of a model's own.")
    ] = None,
    start: Annotated[datetime | None, typer.Option("--from", help="UTC, inclusive; the first training row.")] = None,
    end: Annotated[datetime | None, typer.Option("--to", help="UTC, exclusive; the end of the log.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Only impressions of this scenario.")] = None,
    entities: Annotated[
        Path | None, typer.Option(help="Rows of your own, .parquet or .csv with the log's columns, in their place.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Pull a model's FeatureService for the impressions of a time range, each row as of its own moment, to Parquet.

    With --entities, for rows of your own: user, POI, scenario and time, and what the request said, if it said anything.
    An interrupted pull goes on with the first part that is not there yet."""
    from feature_repo.datasets.schema import Schema
    from feature_repo.store import open_store
    from serving import screen, stages
    from trainers import training_set

    with explained(), screen.stage("point-in-time pull", "rows") as report:
        target = workspace_of(workspace)
        store, split = open_store(target), Schema.load(target.schema).split
        whole = (split.train, split.end) if entities is None else (stages.BEGINNING, stages.END)
        pull = training_set.Pull(
            service=stages.service_name(store, model) if service is None else stages.registered(store, service),
            start=utc(start) or whole[0],
            end=utc(end) or whole[1],
            scenario=scenario,
            entities=entities,
        )
        with stages.quiet():
            folder = training_set.backfill(target, store, pull, lambda done, total: report("rows", done, total))
    screen.console.print(str(folder))


@app.command()
def train(
    model: ModelOption = "larr",
    recipe: Annotated[str, typer.Option(help="Size of the recipe: tiny, default or reference.")] = "default",
    backbone: Annotated[
        str | None,
        typer.Option(help="In place of PLE: shared_bottom, mmoe, star, pepnet ...; the bundle is MODEL_BACKBONE."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order of rows and dropout.")] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """A training set -> a bundle, with its metrics on the test part; `scenerank prove` comes before it is served."""
    from feature_repo.store import open_store
    from serving import demo, screen, stages

    with explained():
        target = workspace_of(workspace)
        store = open_store(target)
        options = stages.TrainOptions(model=model, size=recipe, backbone=backbone, seed=seed)
        stages.planned(store, options)  # a mistake is told before the pull
        with screen.stage("point-in-time pull", "rows") as report:
            pulled = stages.training_set(target, store, report)
        with screen.stage(f"train {model}") as report:
            stages.train(target, store, pulled, options, report)
        screen.console.print(screen.metrics_table([demo.run_of(target, options.name, seed)], "test part"))


@app.command()
def prove(
    bundle: BundleOption = "larr",
    impressions: Annotated[int, typer.Option(help="At least so many, of the log's test part.")] = IMPRESSIONS,
    workspace: WorkspaceOption = None,
) -> None:
    """Replay logged impressions online and pull them offline: is every value the same, bit by bit? Exit status 1 where
    one is not. The certificate goes into the bundle; `serve` wants a valid one."""
    from feature_repo.store import open_store
    from serving import screen, stages

    with explained(), screen.stage(f"prove {bundle}") as report:
        target = workspace_of(workspace)
        certificate = stages.prove(target, open_store(target), bundle, impressions, report)
    screen.console.print(screen.certificate_line(certificate))
    if certificate.differences:
        screen.console.print(screen.differences_table(certificate))
    raise typer.Exit(0 if certificate.valid else 1)


@app.command()
def index(
    seed: Annotated[int, typer.Option(help="Of the towers' weights.")] = 0, workspace: WorkspaceOption = None
) -> None:
    """A training set -> retrieval towers and a FAISS index of all POIs."""
    from feature_repo.store import open_store
    from serving import demo, screen, stages

    with explained():
        target = workspace_of(workspace)
        with screen.stage("towers and index") as report:
            pulled = stages.training_set(target, open_store(target), report)
            stages.index(target, pulled, seed, report)
        screen.console.print(screen.retrieval_table(demo.index_metrics(target)))


for other in (cli_serve.serve, *cli_ask.VERBS):
    app.command()(other)


if __name__ == "__main__":
    app()
