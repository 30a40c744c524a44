"""Messages that are clicks, and what is said of those that are not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.streaming.click import BadClick, parse

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD = {"event_id": "e1", "user_id": "u7", "poi_id": "p42", "time": "2026-03-01T13:00:00.25+02:00"}


def text(**changed: object) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changed).items() if v is not ...}).encode()


def test_a_click_is_a_moment_on_the_globe():
    click = parse(text(), NOW)
    assert click.time_us == int(datetime(2026, 3, 1, 11, 0, 0, 250_000, tzinfo=UTC).timestamp() * 1e6)
    assert (click.user_id, click.poi_id, click.ordered) == ("u7", "p42", False)
    assert parse(text(ordered=True), NOW).ordered


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[1, 2]", "object"),
        (text(event_id=...), "event_id: Field required"),
        (text(user_id=""), r"user_id: .*at least 1 .*got ''"),
        (text(poi_id="p" * 257), "poi_id: .*at most 256"),
        (text(poi_id=42), r"poi_id: .*valid string .*got '42'"),
        (text(time="yesterday"), "time: .*got 'yesterday'"),
        (text(time="2026-03-01T12:00:00"), "time: .*timezone"),
        (text(time="1969-12-31T23:59:59.999999Z"), "time: .*greater than or equal to 1970.*got '1969-"),
        (text(time="1500-01-01T00:00:00Z"), "time: .*got '1500-"),
        (text(time="9999-12-31T23:59:59-23:59"), "time: 9999-.* ahead of"),
        (text(time=1e300), "time: .*got '1e\\+300'"),
        (text(event_id="e\0"), r"event_id: .*no control characters .*got 'e\\x00'"),
        (text(user_id="u\n7"), r"user_id: .*no control characters .*got 'u\\n7'"),
        (text(poi_id="\x85"), "poi_id: .*no control characters"),
        (text(time=(NOW + timedelta(hours=2)).isoformat()), "time: .* is 2:00:00 ahead of this machine's clock"),
        (text(clicked=True), "clicked: Extra inputs"),
    ],
)
def test_what_is_no_click_is_refused_with_field_and_value(message, said):
    with pytest.raises(BadClick, match=said):
        parse(message, NOW)


def test_a_reason_can_be_kept_in_any_database():
    with pytest.raises(BadClick) as refused:
        parse(text(**{"a\0b": "c\0d", "e\nf": "\0"}), NOW)
    assert str(refused.value).isprintable()


def test_ids_of_any_alphabet_and_all_times_since_1970_are_let_in():
    click = parse(text(user_id="Hämeentie 東京", time="1970-01-01T00:00:00Z"), NOW)
    assert (click.user_id, click.time_us) == ("Hämeentie 東京", 0)


def test_a_sender_may_be_a_little_ahead():
    assert parse(text(time=(NOW + timedelta(seconds=59)).isoformat()), NOW)
