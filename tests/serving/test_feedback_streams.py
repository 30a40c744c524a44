"""Streams of requests without a wire: order, the number that may be open, the end of a caller and of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from serving.feedback_streams import Stopping, Streams, TooManyStreams
from tests.serving.conftest import until


def readers() -> int:
    return sum(thread.name == "stream" for thread in threading.enumerate())


def asked(count: int, then: threading.Event, taken: list[int]) -> Iterator[int]:
    """Requests 0, 1, ... as they are asked for, and then none until the event."""
    for number in range(count):
        taken.append(number)
        yield number
    then.wait(10)


def test_requests_come_in_order_each_once_the_one_before_was_dealt_with():
    taken: list[int] = []
    ended = threading.Event()
    ended.set()
    with closing(Streams(1).requests(asked(50, ended, taken))) as requests:
        for number in requests:
            assert taken == list(range(number + 1))
    assert number == 49
    until(lambda: readers() == 0)


def test_only_so_many_are_open_and_one_that_ends_makes_room():
    streams, ended = Streams(2), threading.Event()
    held = [streams.requests(asked(1, ended, [])) for _ in range(2)]
    assert [next(one) for one in held] == [0, 0]
    with pytest.raises(TooManyStreams):
        next(streams.requests(asked(1, ended, [])))
    held[0].close()
    assert next(streams.requests(asked(1, ended, []))) == 0
    ended.set()
    assert list(held[1]) == []
    until(lambda: readers() == 0)


def test_a_stop_ends_those_that_are_idle_behind_what_they_brought():
    streams, ended = Streams(2), threading.Event()
    idle, busy = (streams.requests(asked(1, ended, [])) for _ in range(2))
    assert (next(idle), next(busy)) == (0, 0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(next, idle)
        streams.stop()
        assert isinstance(waits.exception(5), Stopping)
    with pytest.raises(Stopping):  # once it has dealt with its request
        next(busy)
    with pytest.raises(Stopping):
        next(streams.requests(asked(1, ended, [])))
    ended.set()
    until(lambda: readers() == 0)


def test_a_caller_that_breaks_off_ends_its_stream():
    def broken() -> Iterator[int]:
        yield 1
        raise ConnectionError

    assert list(Streams(1).requests(broken())) == [1]
