"""Processes behind one port agree on what answers: each follows what was agreed, or says why it cannot."""

from __future__ import annotations

import math
import os
import secrets
import signal
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
from serving import agreement
from serving.admin import AdminServicer
from serving.agreement import Agreed, Follower
from serving.attribution import KEY_BYTES, Signer
from serving.live import Live, identity_of
from serving.opening import open_pipeline
from serving.pipeline import Pipeline
from serving.request import RequestContext
from serving.v1 import admin_pb2
from tests.serving.conftest import until
from trainers import bundle as bundles


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
    until(lambda: "cannot read, or say, what is agreed on" in caplog.text, seconds=60)
    time.sleep(0.1)
    assert caplog.text.count("cannot read, or say") == 1, "told once"
    ple = bundles.load(workspace.bundles / "ple").manifest.version
    agreement.say(path, Agreed("ple", replace(identity_of(live.current), bundle=ple)))
    assert tried.acquire(timeout=60)
    until(lambda: "the registry is down" in caplog.text, seconds=60)
    assert live.name == "larr" and not tried.acquire(timeout=0.2), "it is not tried again and again"
    away.clear()
    follower._again = 0.0
    until(lambda: live.name == "ple", seconds=60)
    follower.close()


def test_a_process_whose_parent_is_gone_ends(live: Live, tmp_path: Path) -> None:
    ended: SimpleQueue[int] = SimpleQueue()
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.put(number))
    try:
        Follower(tmp_path / "agreed.json", live, lambda name: live.current, parent=-1, every_s=0.05)
        assert ended.get(timeout=10) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
