"""The verbs that keep the store up with the world: how fresh it is, clicks as they happen, what became of answers."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from serving.options import WorkspaceOption, explained, utc, workspace_of


def freshness(
    at: Annotated[
        datetime | None,
        typer.Option(help="UTC; by default now where clicks are streamed (WORKSPACE/stream.db), else the log's end."),
    ] = None,
    prometheus: Annotated[Path | None, typer.Option(help="Also write gauges to this file, for a scraper.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """How old the values of every view are, offline and online. Exit status 1 where a promise is broken."""
    import duckdb

    from feature_repo.datasets.schema import Schema
    from feature_repo.store import open_store
    from serving import freshness as measured
    from serving import screen

    with explained():
        target = workspace_of(workspace)
        # A log that has ended is judged as of then. Where clicks come in, a pipeline that stood still must show.
        end = datetime.now(UTC) if target.stream.exists() else Schema.load(target.schema).split.end
        moment = utc(at) or end
        try:
            found = list(measured.measure(open_store(target), moment))
        except duckdb.IOException as error:
            raise ValueError(f"a view's source is not there yet (`scenerank embed`, `knowledge`): {error}") from error
        if prometheus is not None:
            measured.export(found, prometheus)
    screen.console.print(screen.freshness_table(found, moment))
    raise typer.Exit(1 if any(one.late for one in found) else 0)


def stream(
    file: Annotated[Path | None, typer.Argument(help="A file that grows by one click a line.")] = None,
    redis_stream: Annotated[str | None, typer.Option(help="In place of a file: a stream of Redis.")] = None,
    redis: Annotated[
        str, typer.Option(envvar="SCENERANK_STREAM_REDIS", help="Its server; with a password, use the variable.")
    ] = "redis://127.0.0.1:6379",
    ledger: Annotated[
        str | None,
        typer.Option(envvar="SCENERANK_STREAM_LEDGER", help="SQLAlchemy's URL; WORKSPACE/stream.db by default."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="From the beginning once more, as after a loss of the online store.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left to read.")] = False,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Print what was left out, a line each, and the reasons to stderr.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Clicks -> the users' state in the online store, within a second; each event counts once.

    A click is a line, or the field `click` of a stream's entry:

        {"event_id": "e81", "user_id": "u7", "poi_id": "p42", "time": "2026-03-01T12:00:00Z", "ordered": false}

    Late clicks and clicks in any order end in the same state. What is no click is put aside; --rejected prints it, to
    be mended and sent again. A store or a server that is away is waited for. Stopped or killed, it goes on where it
    was. One process reads one file or stream; a second one is refused.
    """
    from feature_repo.files import locked
    from feature_repo.store import open_store
    from feature_repo.streaming.consume import Consumer
    from feature_repo.streaming.ledger import Ledger
    from feature_repo.streaming.redis_stream import RedisStream
    from feature_repo.streaming.tail import FileTail
    from serving.stream import Watch

    with explained():
        target = workspace_of(workspace)
        record = Ledger(ledger or f"sqlite:///{target.stream}")
        if rejected:
            for one in record.rejected():
                typer.echo(one.message.text)
                typer.echo(one.reason, err=True)
            return
        if (file is None) == (redis_stream is None):
            raise ValueError("give a file or --redis-stream, one of the two")
        if file is not None and not file.exists():
            typer.echo(f"{file} is not there yet; it is waited for", err=True)
        source = FileTail(file) if file is not None else RedisStream(redis, str(redis_stream))
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        busy = f"`scenerank data` is at work in {target.root}: stream when it is done"
        other = (
            f"another `scenerank stream` follows {source.name} in {target.root}: stop it first, or leave it to go on"
        )
        with (
            locked(target.stream_lock, shared=True, busy=busy),
            locked(target.source_lock(source.name), shared=False, busy=other),
        ):
            if again:
                record.forget()
            Consumer(open_store(target), source, record).run(Watch(once=once).stopped, wait_s=0.2 if once else 1.0)


class FeedbackAction(Enum):
    STATUS = "status"
    EXPORT = "export"


def feedback(
    action: Annotated[
        FeedbackAction, typer.Argument(help="`status`: count the events; `export`: let the log grow by them.")
    ] = FeedbackAction.STATUS,
    wait_minutes: Annotated[
        float, typer.Option(min=0, help="Leave younger answers out: what is not clicked by then was refused.")
    ] = 30,
    workspace: WorkspaceOption = None,
) -> None:
    """What became of the server's answers (`RecordFeedback`) -> rows of the log for the next training set.

    `export` may be repeated at any time: each answer stands in the log once, as it is known by then. Valid and test
    part move with the end of the log. Then: `scenerank materialize`, `scenerank train`. The events are in
    WORKSPACE/feedback.db, or in the database that SCENERANK_FEEDBACK_URL names, as
    postgresql+psycopg://user:password@host/database.
    """
    from feature_repo.datasets.schema import Schema
    from serving import feedback_tables, screen, stages
    from serving.feedback import counts

    with explained():
        target = workspace_of(workspace)
        Schema.load(target.schema)  # a mistyped workspace is none to make a database in
        engine = feedback_tables.opened(feedback_tables.url_of(target))
        if action is FeedbackAction.STATUS:
            found = counts(engine)
            screen.console.print(", ".join(f"{count:,} {outcome}" for outcome, count in found.items()))
            return
        with screen.stage("export feedback") as report:
            exported = stages.feedback(target, engine, timedelta(minutes=wait_minutes), report)
        screen.console.print(
            f"{exported.rows:,} places shown, {exported.clicks:,} clicked, {exported.orders:,} ordered are in the log; "
            f"{exported.waiting:,} answers are too young, {exported.unknown:,} places left out whose user, POI or "
            "scenario the data set lacks"
        )
        if exported.foreign:
            screen.console.print(
                f"{exported.foreign:,} answers left out that were of another data set than "
                f"{Schema.load(target.schema).identity}: there, the same ids name others"
            )


VERBS = (freshness, stream, feedback)
