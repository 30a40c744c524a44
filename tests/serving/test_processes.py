"""Several processes behind one port: real ones, that are killed, told to answer with another bundle, and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from feature_repo.workspace import Workspace
from serving import processes
from serving.client import Asker, Recommender
from serving.operator_client import Operator
from serving.v1 import admin_pb2, admin_pb2_grpc
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.conftest import ROOT, Project
from tests.serving.conftest import until
from trainers import bundle as bundles

# Says that it answers, with a line of its own in a file, and lives until it is told to stop, or ends by itself.
PROGRAM = """
import os, signal, sys, time
n, address, seconds, log = sys.argv[1:]
if float(seconds) == 0:
    sys.exit(3)
if float(seconds) < 0:
    open(log, "a").write(f"{n} {os.getpid()}\\n")
    time.sleep(100)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("a warning of some library", flush=True)
print(f"serving it on {address}", flush=True)
with open(log, "a") as file:
    file.write(f"{n} {os.getpid()}\\n")
time.sleep(float(seconds))
sys.exit(1)
"""
SUPERVISE = """
import sys
from pathlib import Path
from serving import processes
log, address, *seconds = sys.argv[1:]
def command(n, shared, agreed):
    return [sys.executable, "-c", Path(log).with_name("program.py").read_text(), str(n), shared, seconds[n], log]
sys.exit(processes.serve(command, len(seconds), address, lambda port: print("all on", port, flush=True)))
"""


def supervised(folder: Path, *seconds: str, address: str = "127.0.0.1:0") -> subprocess.Popen[str]:
    """Programs that live so long, looked after by a process of its own."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-c", SUPERVISE, str(folder / "log"), address, *seconds]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(folder: Path) -> list[tuple[str, int]]:
    log = folder / "log"
    return [(n, int(pid)) for n, pid in map(str.split, log.read_text().splitlines())] if log.exists() else []


def test_one_that_dies_is_replaced_and_all_end_together(tmp_path: Path) -> None:
    with supervised(tmp_path, "100", "100") as looking_after:
        assert looking_after.stdout is not None
        assert looking_after.stdout.readline().startswith("all on ")
        (killed,) = [pid for n, pid in lines(tmp_path) if n == "1"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(lines(tmp_path)) == 3, seconds=60)
        assert [n for n, _ in lines(tmp_path)].count("1") == 2
        looking_after.terminate()
        assert looking_after.wait(10) == 0
        for _, pid in lines(tmp_path):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_where_one_cannot_start_none_goes_on(tmp_path: Path) -> None:
    with supervised(tmp_path, "100", "0") as looking_after:
        printed, _ = looking_after.communicate(timeout=30)
        assert looking_after.returncode == 3 and "all on" not in printed


def test_where_one_takes_too_long_none_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "START_S", 0.5)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        silent = [sys.executable, "-c", "import time; time.sleep(100)"]
        assert processes.serve(lambda *_: silent, 2, "127.0.0.1:0", lambda port: pytest.fail("it did start")) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "2 of 2 server processes do not answer" in caplog.text


def test_a_stop_while_they_start_is_a_stop(tmp_path: Path) -> None:
    with supervised(tmp_path, "100", "-1") as looking_after:
        until(lambda: len(lines(tmp_path)) == 2, seconds=60)
        looking_after.terminate()
        printed, _ = looking_after.communicate(timeout=30)
        assert looking_after.returncode == 0 and "all on" not in printed


def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            processes.reserved(f"127.0.0.1:{taken.getsockname()[1]}")


def test_an_address_that_others_are_about_to_share_is_an_error() -> None:
    with processes.reserved("127.0.0.1:0") as first, pytest.raises(OSError, match="in use"):
        processes.reserved(f"127.0.0.1:{first.getsockname()[1]}")


def test_an_address_is_free_while_connections_of_a_server_that_stopped_linger() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        server.bind(("127.0.0.1", 0))
        server.listen()
        place = server.getsockname()
        with socket.create_connection(place) as caller:
            accepted, _ = server.accept()
            accepted.close()  # who closes first keeps the connection for a minute
            assert caller.recv(1) == b""
    with processes.reserved(f"127.0.0.1:{place[1]}") as reserved:
        assert reserved.getsockname() == place


def of_each(address: str, say: Callable[[grpc.Channel, admin_pb2.Serving], Any], connections: int = 16) -> list[Any]:
    """What each process that is reached says: each connection is to one, known by the moment since when it answers."""
    found = {}
    for _ in range(connections):
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, alone) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
            serving = stub.GetServing(admin_pb2.GetServingRequest(), timeout=60, wait_for_ready=True).serving
            found[serving.since.ToNanoseconds()] = say(channel, serving)
    return list(found.values())


def children(process: subprocess.Popen[str]) -> list[int]:
    """Of every thread."""
    files = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for file in files for pid in file.read_text().split()]


def test_they_agree_on_what_answers_and_one_that_died_comes_back_to_it(
    workspace: Workspace, asker: Asker, poi_ids: list[str]
) -> None:
    project = Project(ROOT, workspace)
    larr, ple = (bundles.load(workspace.bundles / name).manifest.version for name in ("larr", "ple"))
    with project.served("--unproven", "--processes", "2", "--workers", "1") as served:

        def both_answer_with(version: str) -> bool:
            return of_each(served.address, lambda _, serving: serving.current.version) == [version, version]

        def scores(channel: grpc.Channel, serving: admin_pb2.Serving) -> list[float]:
            stub = pb_grpc.RecommenderServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.RankRequest(context=asker.message(), poi_ids=poi_ids)
            return list(stub.Rank(request, timeout=60).ranking.p_click)

        assert len(children(served.process)) == 2
        until(lambda: both_answer_with(larr), seconds=60)
        one, other = of_each(served.address, scores)
        assert one == other and len(one) == len(poi_ids), "the same in every process"
        with Operator(served.address) as operator, pytest.raises(grpc.RpcError, match="a shadow would be one's alone"):
            operator.shadow("ple", 0.5)
        with Operator(served.address) as operator:
            assert operator.reload("ple").current.version == ple
        until(lambda: both_answer_with(ple), seconds=60)
        killed = children(served.process)[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: both_answer_with(ple), seconds=60)
        assert killed not in children(served.process)
        with Operator(served.address) as operator:
            operator.reload("larr")
        until(lambda: both_answer_with(larr), seconds=60)
        with Recommender(served.address) as client:
            assert client.rank(asker, poi_ids).model.version == larr
        served.process.terminate()
        assert served.process.wait(60) == 0
