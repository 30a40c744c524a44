"""Spans of a request and its stages, in the caller's trace; where the extra `trace` is installed."""

from __future__ import annotations

import importlib.util

import grpc
import pytest

from serving.server import ServerOptions, create_server
from serving.tracing import NoTracing, Traces, exported
from serving.v1 import recommender_pb2 as pb
from serving.v1 import recommender_pb2_grpc as pb_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_is_a_span_of_the_callers_trace_with_its_stages_below(pipeline, asker, poi_ids):
    pytest.importorskip("opentelemetry.sdk", reason="the extra `trace`")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    server = create_server(pipeline, ServerOptions(observers=(Traces(provider),)))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommenderServiceStub(channel)
        message = pb.RankRequest(context=asker.message(), poi_ids=poi_ids[:3])
        stub.Rank(message, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
        with pytest.raises(grpc.RpcError):
            stub.Rank(pb.RankRequest(), metadata=(("traceparent", "nonsense"),))
    server.stop()
    spans = kept.get_finished_spans()
    *stages, request = spans[: next(at for at, span in enumerate(spans) if span.kind is SpanKind.SERVER) + 1]
    assert request.name == "scenerank.v1.RecommenderService/Rank"
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert [span.name for span in stages] == ["queue", "read", "read", "score", "encode"]
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in stages)
    assert request.attributes["rpc.response.status_code"] == "OK" and request.status.status_code is StatusCode.UNSET
    refused = spans[-1]
    assert refused.parent is None and refused.status.status_code is StatusCode.ERROR
    words = repr([(span.name, dict(span.attributes)) for span in spans])
    assert asker.user_id not in words.split("'") and poi_ids[0] not in words.split("'")


def test_traces_without_the_extra_are_refused_with_the_remedy():
    if importlib.util.find_spec("opentelemetry.sdk") is not None:
        pytest.skip("the extra is installed")
    with pytest.raises(NoTracing, match=r"scenerank\[trace\]"):
        exported()
