from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_repo.stores.packed import StoreUnavailable
from serving.guard import StoreGuard, StoreSlow


@pytest.fixture
def hanging():
    """A read that hangs until the test ends."""
    ended = threading.Event()
    yield lambda: ended.wait(60)
    ended.set()


def refuse():
    raise StoreUnavailable("away")


def test_what_is_read_is_returned_and_what_is_no_fault_of_the_store_is_raised():
    guard = StoreGuard(2)
    assert guard.ask(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        guard.ask(lambda: 1 // 0)
    assert guard.is_open
    assert guard.ask(lambda: 8, within_s=5.0) == 8
    assert guard.close()


def test_a_store_that_failed_rests_and_one_request_tries(hanging):
    guard = StoreGuard(4, patience_s=5.0, rest_s=0.3)
    asked = []

    def counted():
        asked.append(1)
        refuse()

    with pytest.raises(StoreUnavailable):
        guard.ask(counted)
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            guard.ask(counted)
    assert len(asked) == 1 and not guard.is_open
    time.sleep(0.35)
    with pytest.raises(StoreUnavailable):
        guard.ask(counted)
    assert len(asked) == 2
    time.sleep(0.35)
    # The one that tries takes its time; the others do not wait for it.
    release, result = threading.Event(), []
    trier = threading.Thread(target=lambda: result.append(guard.ask(lambda: release.wait(10))))
    trier.start()
    while not guard._trying:
        time.sleep(0.001)
    with pytest.raises(StoreUnavailable):
        guard.ask(counted)
    release.set()
    trier.join()
    assert result == [True] and guard.is_open
    assert guard.ask(lambda: 9) == 9


def test_a_store_that_hangs_costs_the_patience_once(hanging):
    guard = StoreGuard(2, patience_s=0.2, rest_s=60.0)
    began = time.monotonic()
    with pytest.raises(StoreSlow):
        guard.ask(hanging)
    waited = time.monotonic() - began
    assert 0.2 <= waited < 2.0
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            guard.ask(hanging)
    assert time.monotonic() - began < 0.2
    assert not guard.close(), "a read hangs still"


def test_a_caller_in_a_hurry_says_nothing_of_the_store(hanging):
    guard = StoreGuard(2, patience_s=30.0)
    with pytest.raises(StoreSlow):
        guard.ask(lambda: time.sleep(0.3), within_s=0.01)
    assert guard.is_open
    assert guard.ask(lambda: 1) == 1


def test_reads_that_hang_never_take_more_threads_than_there_are(hanging):
    guard = StoreGuard(2, patience_s=0.2)
    for _ in range(2):
        with pytest.raises(StoreSlow):
            guard.ask(hanging, within_s=0.01)
    time.sleep(0.25)
    with pytest.raises(StoreSlow, match="all reads"):
        guard.ask(lambda: 1)
    assert not guard.is_open


def test_more_reads_than_threads_are_no_store_that_hangs():
    guard = StoreGuard(2, patience_s=30.0)

    def read(n):
        time.sleep(0.02)
        return n

    with ThreadPoolExecutor(16) as callers:
        assert list(callers.map(lambda n: guard.ask(lambda: read(n)), range(64))) == list(range(64))
    assert guard.is_open and guard.close()


def test_a_read_that_nobody_waits_for_any_more_is_not_begun():
    guard, release, begun = StoreGuard(1, patience_s=30.0), threading.Event(), []
    for read in (lambda: release.wait(60), lambda: begun.append(1)):
        with pytest.raises(StoreSlow):
            guard.ask(read, within_s=0.01)
    release.set()
    assert guard.ask(lambda: 1) == 1
    assert not begun and guard.close()


def test_a_store_on_this_machine_is_read_where_it_is_asked_and_rests_as_any_other():
    guard = StoreGuard(2, rest_s=60.0, is_local=True)
    assert guard.ask(threading.current_thread, within_s=0.0) is threading.current_thread()
    with pytest.raises(StoreUnavailable):
        guard.ask(refuse)
    with pytest.raises(StoreUnavailable, match="left alone"):
        guard.ask(lambda: 1)
    assert guard.close()
