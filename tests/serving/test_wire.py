"""Messages as plain types: what is read of a request of feedback, and how often."""

from __future__ import annotations

import pytest

from serving import wire
from serving.attribution import Signer
from serving.request import InvalidRequest, RequestContext
from serving.v1 import recommender_pb2 as pb


def request_of(*tokens: str) -> pb.RecordFeedbackRequest:
    """One event a token."""
    events = [
        pb.FeedbackEvent(event_id=str(number), attribution_token=token, poi_id="p", outcome=pb.OUTCOME_SHOWN)
        for number, token in enumerate(tokens)
    ]
    return pb.RecordFeedbackRequest(events=events)


def test_events_of_one_answer_share_what_its_token_says() -> None:
    signer = Signer()
    first, second = (
        signer.token("b", "city", RequestContext(user_id=user, scenario_id="s", time_us=1)) for user in "uv"
    )
    events = wire.feedback_events(request_of(first, second, *[first] * 998), signer)
    assert [one.event_id for one in events] == [str(number) for number in range(1000)]
    assert [one.answer.context.user_id for one in events] == ["u", "v", *["u"] * 998]
    assert len({id(one.answer) for one in events}) == 2  # each token was read once


def test_a_token_that_nobody_gave_out_is_named_at_each_of_its_events() -> None:
    signer = Signer()
    good = signer.token("b", "city", RequestContext(user_id="u", scenario_id="s", time_us=1))
    with pytest.raises(InvalidRequest) as refused:
        wire.feedback_events(request_of("?", good, "?"), signer)
    assert [v.field for v in refused.value.violations] == ["events[0].attribution_token", "events[2].attribution_token"]
