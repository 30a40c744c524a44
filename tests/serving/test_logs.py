"""Lines of the log: JSON that a collector reads, faults always, and no id of anybody in any of them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from serving import logs
from serving.auth import Tokens
from serving.client import Access, Recommender
from serving.pipeline import Pipeline
from serving.scorer import Scorer
from serving.server import ServerOptions, create_server

TOKEN = "a-secret-token-of-a-caller"


class Broken(Scorer):
    """Fails on every request, with a user's id in its message."""

    def score(self, table):
        raise KeyError(table["user_id"][0].as_py())


@pytest.fixture(params=[logging.INFO, logging.DEBUG])
def lines(request: Any) -> Iterator[tuple[int, io.StringIO]]:
    """Level, and what was written at it."""
    written, logger = io.StringIO(), logging.getLogger("serving")
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonFormatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(request.param)
    yield request.param, written
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_fault_has_a_line_with_its_id_and_others_at_debug_only(lines, pipeline, asker, poi_ids):
    level, written = lines
    broken = Pipeline(pipeline.reader, Broken(pipeline.bundle))
    access = Access(token=TOKEN)
    for ranker in (pipeline, broken):
        server = create_server(ranker, ServerOptions(tokens=lambda: Tokens.one(TOKEN, "test")))
        with Recommender(f"127.0.0.1:{server.port}", access) as client:
            try:
                client.rank(asker, poi_ids[:3])
            except grpc.RpcError as error:
                told = error.details()
        server.stop()
    said = [json.loads(line) for line in written.getvalue().splitlines()]
    requests = [line for line in said if line["logger"] == "serving.requests"]
    assert [line["code"] for line in requests] == (["OK", "INTERNAL"] if level == logging.DEBUG else ["INTERNAL"])
    fault = requests[-1]
    assert told == f"internal error {fault['request']}" and fault["level"] == "ERROR"
    assert fault["ms"] >= sum(fault["stages"].values()) > 0 and set(fault["stages"]) == {"queue", "read"}
    (cause,) = [line for line in said if "exception" in line]
    assert cause["exception"] == "KeyError" and fault["request"] in cause["message"]
    assert any("test_logs.py" in place for place in cause["at"])
    for secret in (asker.user_id, TOKEN, *poi_ids[:3]):
        assert f'"{secret}"' not in written.getvalue() and f"'{secret}'" not in written.getvalue()


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_what_an_exception_says_is_in_no_line(formatter):
    written, logger = io.StringIO(), logging.getLogger("serving.of_this_test")
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter)
    other = logging.StreamHandler(io.StringIO())  # of a program that this one is part of
    logger.addHandler(other)
    logger.addHandler(handler)
    try:
        try:
            {}["u7-secret"]
        except KeyError:
            logger.exception("request failed, error id %s", "4711")
    finally:
        logger.removeHandler(handler)
        logger.removeHandler(other)
    said = written.getvalue()
    assert "u7-secret" not in said and "error id 4711" in said
    assert "KeyError" in said and "test_logs.py:" in said, "what an operator looks for"


@pytest.mark.parametrize("options", [(), ("--log-format", "json", "--log-level", "debug")])
def test_a_served_process_writes_lines_when_asked(options, project_in, workspace, asker, poi_ids):
    with project_in(workspace.root).served("--bundle", "larr", "--unproven", *options) as served:
        with Recommender(served.address, Access(timeout_seconds=20)) as client:
            client.rank(asker, poi_ids[:3])
        served.process.terminate()
        served.process.wait(60)
        served.log.seek(0)
        written = served.log.read()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    ranked = [line for line in lines if line.get("method", "").endswith("/Rank")]
    assert [(line["code"], line["level"]) for line in ranked] == ([("OK", "DEBUG")] if options else [])
