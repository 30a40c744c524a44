"""A growing file and a stream of Redis: every message once, in order, whatever happens to file, stream and reader."""

from __future__ import annotations

import os

import pytest
from redis import Redis

from feature_repo.streaming import redis_stream
from feature_repo.streaming.redis_stream import RedisStream
from feature_repo.streaming.source import Source
from feature_repo.streaming.tail import MOST_BYTES, FileTail


def texts(source: Source, most: int = 100) -> list[str]:
    return [message.text.decode() for message in source.read(most, 0.05)]


def append(path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(lines))


def test_a_line_counts_when_its_end_is_written(tmp_path):
    path = tmp_path / "clicks.jsonl"
    tail = FileTail(path)
    assert texts(tail) == [], "a file that is not there yet"
    append(path, "one\n\ntw")
    assert texts(tail) == ["one"]
    append(path, "o\nthree\n")
    assert texts(tail, most=1) == ["two"]
    assert texts(tail) == ["three"]


def test_a_reader_goes_on_after_its_position(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n", "two\n", "three\n")
    messages = FileTail(path).read(100, 0)
    again = FileTail(path)
    again.resume(messages[0].position)
    assert texts(again) == ["two", "three"]
    again.resume(None)
    assert texts(again) == ["one", "two", "three"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_was_renamed_is_read_to_its_end_first(tmp_path, restarted):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n")
    tail = FileTail(path)
    position = tail.read(100, 0)[0].position
    append(path, "two\n")
    os.rename(path, tmp_path / "clicks.jsonl.1")
    append(path, "three\n")
    if restarted:
        tail = FileTail(path)
        tail.resume(position)
    assert texts(tail) == ["two"]
    assert texts(tail) == ["three"]
    append(path, "four\n")
    assert texts(tail) == ["four"]


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "a long line\n")
    tail = FileTail(path)
    assert texts(tail) == ["a long line"]
    os.truncate(path, 0)
    append(path, "new\n")
    assert texts(tail) == ["new"]


def test_an_endless_line_is_passed_on_cut_and_the_next_is_whole(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "x" * (3 * MOST_BYTES), "\nnext\n")
    long, following = texts(FileTail(path))
    assert len(long) == MOST_BYTES and following == "next"


@pytest.fixture
def stream(redis_address, request):
    redis = Redis.from_url(f"redis://{redis_address}")
    name = request.node.name
    redis.delete(name)
    yield redis, name, lambda: RedisStream(f"redis://{redis_address}", name)
    redis.delete(name)


def add(redis: Redis, name: str, *clicks: str) -> None:
    for click in clicks:
        redis.xadd(name, {redis_stream.FIELD: click})


def test_what_was_given_out_and_not_dealt_with_comes_again(stream):
    redis, name, opened = stream
    add(redis, name, "one", "two")  # before anybody reads
    first = opened()
    first.resume(None)
    messages = [*first.read(1, 0.05), *first.read(1, 0.05)]
    assert [m.text for m in messages] == [b"one", b"two"]
    first.done(messages[:1])
    add(redis, name, "three")
    second = opened()
    second.resume(messages[0].position)
    assert texts(second) == ["two"]
    again = second.read(1, 0.05)  # not acknowledged: once more
    assert [m.text for m in again] == [b"two"]
    second.done(again)
    last = second.read(100, 0.05)
    assert [m.text for m in last] == [b"three"]
    second.done(last)
    second.resume(None)
    assert texts(second) == ["one", "two", "three"]


def test_entries_without_a_click_or_trimmed_away_are_empty_messages(stream):
    redis, name, opened = stream
    redis.xadd(name, {"something": "else"})
    add(redis, name, "one")
    source = opened()
    assert texts(source) == ["", "one"]
    redis.xtrim(name, maxlen=0)
    source.resume("0-0")
    assert texts(source) == ["", ""]


def test_a_server_that_forgot_everything_is_read_from_its_beginning(stream):
    redis, name, opened = stream
    source = opened()
    add(redis, name, "one")
    assert texts(source) == ["one"]
    redis.delete(name)
    add(redis, name, "two")
    assert texts(source) == ["two"]
