"""The status that each error of an answer means to the caller, and when it is well to come again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import grpc
from grpc_status import rpc_status

from feature_repo.stores.packed import StoreUnavailable
from serving import observe, wire
from serving.admission import Expired, Gone, Overloaded
from serving.feedback import FeedbackBusy
from serving.feedback_streams import Stopping, TooManyStreams
from serving.feedback_tables import FeedbackUnavailable
from serving.pipeline import NoIndex
from serving.request import InvalidRequest

FEEDBACK_AGAIN_S = 1.0  # a database that is well stores thousands of events in that time
Answer = TypeVar("Answer")


class NoFeedback(RuntimeError):
    """Feedback was brought to a server that keeps none."""


def guarded(answer: Callable[[], Answer], context: grpc.ServicerContext) -> Answer:
    """The answer, or the call ended with the status that its error means."""
    try:
        return answer()
    except InvalidRequest as error:
        context.abort_with_status(rpc_status.to_status(wire.bad_request(error)))
    except (NoIndex, NoFeedback) as error:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except Overloaded as error:
        context.abort_with_status(_come_again(error, error.retry_after_s))
    except (FeedbackBusy, TooManyStreams) as error:
        context.abort_with_status(_come_again(error, FEEDBACK_AGAIN_S))
    except Expired as error:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
    except Gone as error:
        context.abort(grpc.StatusCode.CANCELLED, str(error))
    except (FeedbackUnavailable, Stopping) as error:
        context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except StoreUnavailable:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the online store does not answer")
    except Exception:
        observe.fault(context)
    raise AssertionError("abort returned")


def _come_again(error: Exception, after_s: float) -> grpc.Status:
    """RESOURCE_EXHAUSTED, with the hint in gRPC's own words too (gRFC A6): clients with a retry policy follow it."""
    status = rpc_status.to_status(wire.exhausted(str(error), after_s))
    pushback = ("grpc-retry-pushback-ms", str(math.ceil(1000 * after_s)))
    return status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
