"""A growing file and a stream of Redis: every message once, in order, whatever happens to file, stream and reader."""

from __future__ import annotations

import os
import shutil

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


def rotated(path, *lines: str) -> None:
    """`clicks.jsonl.1` -> `clicks.jsonl.2` and so on, then a new file; each change a second after the one before."""
    numbers = sorted((int(old.suffix[1:]) for old in path.parent.glob("*.jsonl.*")), reverse=True)
    for number in numbers:
        os.rename(f"{path}.{number}", f"{path}.{number + 1}")
    if path.exists():
        os.rename(path, f"{path}.1")
        os.utime(f"{path}.1", (now := 1_000 + len(numbers), now))
    append(path, *lines)


@pytest.mark.parametrize("restarted", [False, True])
def test_files_that_were_renamed_while_nobody_read_are_all_read_oldest_first(tmp_path, restarted):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n")
    tail = FileTail(path)
    position = tail.read(100, 0)[0].position
    append(path, "two\n")
    for number in range(3, 13):
        rotated(path, f"{number}\n")
    if restarted:
        tail = FileTail(path)
        tail.resume(position)
    assert [line for _ in range(12) for line in texts(tail)] == ["two", *map(str, range(3, 13))]
    tail.resume(None)
    assert [line for _ in range(12) for line in texts(tail)] == ["one", "two", *map(str, range(3, 13))]


def test_other_files_of_that_name_are_none_of_this_log(tmp_path):
    path = tmp_path / "clicks.jsonl"
    for suffix in ("", "-20260301", ".2026-03-02_10-00-00", ".1.gz", ".lock", "2", ".swp"):
        append(tmp_path / f"clicks.jsonl{suffix}", f"{suffix}\n", "x\n")
    (tmp_path / "clicks.jsonl.7").mkdir()
    tail = FileTail(path)
    assert {line for _ in range(4) for line in texts(tail)} == {"x", "-20260301", ".2026-03-02_10-00-00"}


def test_a_late_line_in_a_renamed_file_takes_no_later_file_out_of_the_order(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n")
    tail = FileTail(path)
    assert texts(tail) == ["one"]
    os.rename(path, f"{path}.1")
    assert texts(tail) == []  # seen to be renamed
    append(path, "three\n")
    os.rename(f"{path}.1", f"{path}.2")
    os.rename(path, f"{path}.1")
    append(path, "four\n")
    append(path.with_name("clicks.jsonl.2"), "two\n")  # its writer had kept it open
    lines = [line for _ in range(6) for line in texts(tail)]
    assert [line for line in dict.fromkeys(lines) if line != "one"] == ["two", "three", "four"]  # some come twice


@pytest.mark.parametrize("created", [False, True], ids=["before there is another", "while the other is empty"])
def test_what_is_written_to_a_renamed_file_is_read(tmp_path, created):
    path = tmp_path / "clicks.jsonl"
    with path.open("w", buffering=1) as writer:
        writer.write("one\ntw")
        writer.flush()
        tail = FileTail(path)
        assert texts(tail) == ["one"]
        os.rename(path, f"{path}.1")
        if created:
            path.touch()
        assert texts(tail) == []
        writer.write("o\n")
        assert texts(tail) == ["two"]
        writer.write("three\n")
    append(path, "four\n")
    assert texts(tail) == ["three"]
    assert texts(tail) == ["four"]


def test_another_file_with_the_inode_of_one_that_is_gone_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n", "two\n")
    position = FileTail(path).read(100, 0)[0].position
    path.write_text("new\nand longer than the old one was\n")  # the same inode
    tail = FileTail(path)
    tail.resume(position)
    assert texts(tail) == ["new", "and longer than the old one was"]


def test_a_copy_of_a_file_that_was_then_cut_is_read_after_a_restart(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n")
    position = FileTail(path).read(100, 0)[0].position
    append(path, "two\n")
    shutil.copy(path, tmp_path / "clicks.jsonl.1")
    os.truncate(path, 0)
    append(path, "three\n")
    tail = FileTail(path)
    tail.resume(position)
    assert texts(tail) == ["one", "two"], "what comes again counts once, by its event's id"
    assert texts(tail) == ["three"]


def test_a_position_of_an_older_version_is_understood(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n", "two\n")
    tail = FileTail(path)
    tail.resume(f"{path.stat().st_ino}:4")
    assert texts(tail) == ["two"]


def test_a_position_fits_into_the_ledger(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n")
    mark = FileTail(path).read(1, 0)[0].position.split(":")[2]
    assert len(f"{2**64}:{2**63}:{mark}") <= 64


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "a long line\n")
    tail = FileTail(path)
    assert texts(tail) == ["a long line"]
    os.truncate(path, 0)
    append(path, "new\n")
    assert texts(tail) == ["new"]


def test_what_was_read_ahead_of_a_file_that_was_cut_is_forgotten(tmp_path):
    path = tmp_path / "clicks.jsonl"
    append(path, "one\n", "two\n", "three\n")
    tail = FileTail(path)
    assert texts(tail, most=1) == ["one"]
    os.truncate(path, 0)
    append(path, "x\n")
    assert texts(tail) == ["x"]


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
