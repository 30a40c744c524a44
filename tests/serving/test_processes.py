"""Several processes behind one port: real ones, that are killed, told to answer with another bundle, and stopped."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import grpc
import pytest
from sqlalchemy.exc import OperationalError

from feature_repo.workspace import Workspace
from serving import agreement, processes
from serving.admin import AdminServicer
from serving.agreement import Agreed, Follower
from serving.attribution import KEY_BYTES, Signer
from serving.client import Asker, Recommender
from serving.live import Live, identity_of
from serving.opening import open_pipeline
from serving.operator_client import Operator
from serving.pipeline import Pipeline
from serving.request import RequestContext
from serving.v1 import admin_pb2, admin_pb2_grpc
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc
from tests.conftest import ROOT, Project
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


def within(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_that_dies_is_replaced_and_all_end_together(tmp_path: Path) -> None:
    with supervised(tmp_path, "100", "100") as looking_after:
        assert looking_after.stdout is not None
        assert looking_after.stdout.readline().startswith("all on ")
        (killed,) = [pid for n, pid in lines(tmp_path) if n == "1"]
        os.kill(killed, signal.SIGKILL)
        within(lambda: len(lines(tmp_path)) == 3)
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
        within(lambda: len(lines(tmp_path)) == 2)
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
        within(lambda: both_answer_with(larr))
        one, other = of_each(served.address, scores)
        assert one == other and len(one) == len(poi_ids), "the same in every process"
        with Operator(served.address) as operator, pytest.raises(grpc.RpcError, match="a shadow would be one's alone"):
            operator.shadow("ple", 0.5)
        with Operator(served.address) as operator:
            assert operator.reload("ple").current.version == ple
        within(lambda: both_answer_with(ple))
        killed = children(served.process)[0]
        os.kill(killed, signal.SIGKILL)
        within(lambda: both_answer_with(ple))
        assert killed not in children(served.process)
        with Operator(served.address) as operator:
            operator.reload("larr")
        within(lambda: both_answer_with(larr))
        with Recommender(served.address) as client:
            assert client.rank(asker, poi_ids).model.version == larr
        served.process.terminate()
        assert served.process.wait(60) == 0


@pytest.fixture
def live(workspace: Workspace) -> Iterator[Live]:
    live = Live(open_pipeline(workspace, workspace.bundles / "larr", None, unproven=True), name="larr")
    yield live
    live.close()


def test_followers_go_back_at_once_load_what_is_new_and_refuse_what_is_another_by_now(
    workspace: Workspace, live: Live, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return open_pipeline(workspace, workspace.bundles / name, None, unproven=True)

    path, larr = tmp_path / "agreed.json", identity_of(live.current)
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    follower.look()
    assert live.name == "larr" and not loaded
    ple = replace(larr, bundle=bundles.load(workspace.bundles / "ple").manifest.version)
    agreement.say(path, Agreed("ple", ple))
    follower.look()
    follower.look()
    assert (live.name, identity_of(live.current), loaded) == ("ple", ple, ["ple"])
    agreement.say(path, Agreed("larr", larr))
    follower.look()
    assert (live.name, loaded) == ("larr", ["ple"])
    other = replace(larr, bundle="another")
    for said in (Agreed("ple", other), Agreed("none", other)):
        agreement.say(path, said)
        follower.look()
        follower.look()
        assert live.name == "larr" and "cannot follow to" in caplog.text
    assert f"by now the workspace holds ple, version {ple.bundle}, unproven, index none" in caplog.text
    assert loaded == ["ple", "ple", "none"]  # what was refused is not tried again and again
    follower.close()


def test_the_first_to_look_says_what_answers_and_again_where_that_is_cleaned_away(
    live: Live, load: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    path = tmp_path / "agreed.json"
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    follower.look()
    assert agreement.said(path) == Agreed("larr", identity_of(live.current))
    told(live, load, path, "ple", before=path.unlink)
    assert agreement.said(path) == Agreed("ple", identity_of(live.current))
    path.unlink()
    follower.look()
    assert live.name == "ple" and agreement.said(path) == Agreed("ple", identity_of(live.current))
    agreement.say(path, Agreed("none", identity_of(live.current)))
    follower.look()
    path.unlink()
    follower.look()
    assert agreement.said(path) is not None, "of one identity: it answers"
    follower.close()


def test_who_could_not_follow_says_nothing(live: Live, load: Callable[[str], Pipeline], tmp_path: Path) -> None:
    path = tmp_path / "agreed.json"
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    agreement.say(path, Agreed("none", replace(identity_of(live.current), bundle="another")))
    follower.look()
    path.unlink()
    follower.look()
    assert not path.exists()
    follower.close()


def test_a_bundle_that_was_proven_meanwhile_is_another(
    live: Live, load: Callable[[str], Pipeline], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded: list[str] = []

    def counted(name: str) -> Pipeline:
        loaded.append(name)
        return load(name)

    path = tmp_path / "agreed.json"
    follower = Follower(path, live, counted, os.getppid(), every_s=3600)
    agreement.say(path, Agreed("larr", replace(identity_of(live.current), proven=True)))
    follower.look()
    assert loaded == ["larr"] and "`scenerank live reload larr` has all answer with that" in caplog.text
    assert follower._again == math.inf, "what the workspace holds changes by no waiting"
    follower.close()


def test_a_key_that_changed_is_followed_to(workspace: Workspace, live: Live, tmp_path: Path) -> None:
    """And one who rolls back gets the old key again, without loading."""

    def load(name: str) -> Pipeline:
        return open_pipeline(workspace, workspace.bundles / name, None, unproven=True)

    path, key, first = tmp_path / "agreed.json", workspace.attribution_key.read_bytes(), live.current
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    try:
        workspace.attribution_key.write_bytes(secrets.token_bytes(len(key)))
        other = load("larr")
        assert identity_of(other).bundle == identity_of(first).bundle
        agreement.say(path, Agreed("larr", identity_of(other)))
        follower.look()
        token = other.signer.token("bundle", "city", RequestContext(user_id="u", scenario_id="search", time_us=0))
        assert live.current.signer.read(token) and live.previous is first
        agreement.say(path, Agreed("larr", identity_of(first)))
        follower.look()
        assert live.current is first
        other.close()
    finally:
        workspace.attribution_key.write_bytes(key)
        follower.close()


def test_a_key_that_is_taken_beside_is_followed_to(
    workspace: Workspace, live: Live, load: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    path, beside = tmp_path / "agreed.json", workspace.attribution_key.with_name("attribution.next.key")
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    try:
        beside.write_bytes(key := secrets.token_bytes(KEY_BYTES))
        other = load("larr")
        agreement.say(path, Agreed("larr", identity_of(other)))
        follower.look()
        token = Signer(key).token("bundle", "city", RequestContext(user_id="u", scenario_id="search", time_us=0))
        assert live.current.signer.read(token)
        other.close()
    finally:
        beside.unlink()
        follower.close()


@pytest.fixture
def load(workspace: Workspace) -> Callable[[str], Pipeline]:
    return lambda name: open_pipeline(workspace, workspace.bundles / name, None, unproven=True)


def told(live: Live, load: Callable[[str], Pipeline], path: Path, name: str, before: Callable[[], None]) -> None:
    """An operator's word that a bundle answers; `before` others are let know."""

    def announce() -> None:
        before()
        agreement.say(path, Agreed(live.name, identity_of(live.current)))

    AdminServicer(live, load, announce).Reload(admin_pb2.ReloadRequest(bundle=name), cast(grpc.ServicerContext, None))


def test_a_change_that_the_others_cannot_be_told_is_taken_back(live: Live, load: Callable[[str], Pipeline]) -> None:
    def full() -> None:
        raise OSError("no space left on device")

    first = live.current
    for name in ("ple", "larr"):
        with pytest.raises(OSError, match="no space left"):
            live.reload(lambda name=name: load(name), name, full)
        assert (live.current, live.name, live.previous) == (first, "larr", None)
    live.reload(lambda: load("ple"), "ple")
    second = live.current
    with pytest.raises(OSError, match="no space left"):
        live.roll_back(full)
    assert (live.current, live.name, live.previous) == (second, "ple", first)


def test_a_follower_that_looks_before_a_change_is_told_leaves_it(
    live: Live, load: Callable[[str], Pipeline], workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "agreed.json"
    agreement.say(path, Agreed("larr", identity_of(live.current)))
    follower = Follower(path, live, load, os.getppid(), every_s=3600)
    told(live, load, path, "ple", before=follower.look)
    follower.look()
    assert identity_of(live.current).bundle == bundles.load(workspace.bundles / "ple").manifest.version
    assert agreement.said(path) == Agreed("ple", identity_of(live.current))
    follower.close()


def test_a_follower_that_read_what_was_agreed_before_a_change_reads_it_again(
    live: Live, load: Callable[[str], Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "agreed.json", agreement.said
    agreement.say(path, Agreed("larr", identity_of(live.current)))
    follower = Follower(path, live, load, os.getppid(), every_s=3600)

    def said_just_before(path: Path) -> Agreed | None:
        agreed = said(path)
        if live.name == "larr":
            told(live, load, path, "ple", before=lambda: None)
        return agreed

    monkeypatch.setattr(agreement, "said", said_just_before)
    follower.look()
    assert live.name == "ple" and said(path) == Agreed("ple", identity_of(live.current))
    follower.close()


def test_a_follower_outlives_whatever_goes_wrong(
    live: Live, load: Callable[[str], Pipeline], workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away, tried = threading.Event(), threading.Semaphore(0)
    away.set()

    def load_from_the_registry(name: str) -> Pipeline:
        tried.release()
        if away.is_set():
            raise OperationalError("SELECT 1", {}, Exception("the registry is down"))
        return load(name)

    path = tmp_path / "agreed.json"
    path.write_text("no JSON")
    follower = Follower(path, live, load_from_the_registry, os.getppid(), every_s=0.01)
    within(lambda: "cannot read, or say, what is agreed on" in caplog.text)
    time.sleep(0.1)
    assert caplog.text.count("cannot read, or say") == 1, "told once"
    ple = bundles.load(workspace.bundles / "ple").manifest.version
    agreement.say(path, Agreed("ple", replace(identity_of(live.current), bundle=ple)))
    assert tried.acquire(timeout=60)
    within(lambda: "the registry is down" in caplog.text)
    assert live.name == "larr" and not tried.acquire(timeout=0.2), "it is not tried again and again"
    away.clear()
    follower._again = 0.0
    within(lambda: live.name == "ple")
    follower.close()


def test_a_process_whose_parent_is_gone_ends(live: Live, tmp_path: Path) -> None:
    ended: SimpleQueue[int] = SimpleQueue()
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.put(number))
    try:
        Follower(tmp_path / "agreed.json", live, lambda name: live.current, parent=-1, every_s=0.05)
        assert ended.get(timeout=10) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
