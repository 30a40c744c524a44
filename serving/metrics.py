"""What is counted: Prometheus metrics of requests, their stages, the values that they found, and what was answered.

Labels take few values: methods of the contract, codes, views, scenarios that the bundle knows; never an id of a user or
a POI.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    start_http_server,
    values,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving import observe
from serving.admission import Admission
from serving.calibration import Came
from serving.observe import Answered
from serving.online import ViewReading
from serving.pipeline import Ranking

# Feast, when it is imported, puts prometheus_client into its mode for several processes: values would be kept in files
# of a temporary folder, and metrics of two servers of one process would share them.
values.ValueClass = values.MutexValue

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *LATENCY_SECONDS)
PROBABILITIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests answered, by method and code.", "method", "code")
        self._latency = self._histogram("request_seconds", "Seconds in the server.", LATENCY_SECONDS, "method")
        self._stages = self._histogram("stage_seconds", "Seconds of a request in a stage.", STAGE_SECONDS, "stage")
        self._values = self._counter("values", "Stored values asked for, by view and status.", "view", "status")
        self._degraded = self._counter("degraded", "Answers that made do with less.", "level", "reason")
        self._feedback = self._counter("feedback_events", "Feedback events stored, by novelty.", "novelty")
        self._shown = self._counter("calibration_shown", "Places shown, of a sample of answers.", "scenario")
        self._expected = self._counter("calibration_expected_clicks", "Clicks expected of them.", "scenario")
        self._clicked = self._counter("calibration_clicks", "Clicks that came of them.", "scenario")
        self._bundle = Info("scenerank_bundle", "The bundle that answers.", registry=self.registry)
        self._there = Gauge(
            "scenerank_dependency_up", "Whether a dependency answers.", ("dependency",), registry=self.registry
        )
        self._ages, self._scores = _Ages(), _Scores()
        self.registry.register(self._ages)
        self.registry.register(self._scores)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"scenerank_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"scenerank_{name}", help_text, labels, buckets=bounds, registry=self.registry)

    def answered(self, request: Answered) -> None:
        self._requests.labels(request.method, request.code).inc()
        self._latency.labels(request.method).observe(request.seconds)
        for name, seconds in request.stage_seconds().items():
            self._stages.labels(name).observe(seconds)

    def answer(self, ranking: Ranking, scenario: str) -> None:
        """What one answer was made of, what it said, and how it falls short; of a scenario that the bundle knows."""
        self.read(ranking.views, ranking.time_us)
        self.scored(scenario, ranking.p_click, ranking.p_order)
        if (short := ranking.degradation) is not None:
            self.degraded(short.level.name.lower(), short.reason.name.lower())

    def read(self, views: Iterable[ViewReading], time_us: int) -> None:
        """What an answer for this time was made of."""
        for view in views:
            for status, count in (("present", view.present), ("missing", view.missing), ("stale", view.stale)):
                self._values.labels(view.view, status).inc(count)
            self._ages.used(view, time_us)

    def scored(self, scenario: str, p_click: np.ndarray, p_order: np.ndarray) -> None:
        """What an answer said of its n places, float32 (n,); a scenario that the bundle knows."""
        self._scores.add((scenario, "click"), p_click)
        self._scores.add((scenario, "order"), p_order)

    def degraded(self, level: str, reason: str) -> None:
        """An answer made do with less than all: how far down, and why, each one of few words."""
        self._degraded.labels(level, reason).inc()
        observe.note("degraded", f"{level}: {reason}")

    def came(self, came: Came) -> None:
        """What became of an answer of the sample."""
        self._shown.labels(came.scenario).inc(came.shown)
        self._expected.labels(came.scenario).inc(came.expected)
        self._clicked.labels(came.scenario).inc(came.clicked)

    def serves(self, model: str, version: str) -> None:
        """Which bundle answers from now on."""
        self._bundle.info({"model": model, "version": version})

    def found(self, dependency: str, there: bool) -> None:
        self._there.labels(dependency).set(there)

    def follow(self, admission: Admission) -> None:
        """Show how many requests are at work or waiting."""
        inside = Gauge("scenerank_requests_inside", "Requests at work or waiting.", registry=self.registry)
        inside.set_function(lambda: admission.inside)
        waiting = Gauge("scenerank_requests_waiting", "Requests that wait for a worker.", registry=self.registry)
        waiting.set_function(lambda: admission.waiting)

    def follow_pois(self, age_s: Callable[[], float]) -> None:
        """Show how old the values of POIs are that are kept in this process."""
        help_text = "Seconds since the oldest value of a POI that is kept was read; 0: none are kept."
        Gauge("scenerank_poi_cache_age_seconds", help_text, registry=self.registry).set_function(age_s)

    def recorded(self, new: int, repeated: int) -> None:
        self._feedback.labels("new").inc(new)
        self._feedback.labels("repeated").inc(repeated)

    def listen(self, port: int, host: str) -> int:
        """Serve `/metrics` over HTTP from a thread; returns the port (of the system's choice for 0). Raises OSError."""
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise OSError(f"metrics cannot listen on {host}:{port}: {error.strerror}; take another port") from error
        return int(server.server_port)


class _Ages(Collector):
    """How old the values of each view were that the last answer used, the oldest and the newest of them."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}  # microseconds

    def used(self, view: ViewReading, time_us: int) -> None:
        if view.oldest_us is not None and view.newest_us is not None:
            self._last[view.view] = time_us - view.oldest_us, time_us - view.newest_us

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "scenerank_feature_age_seconds",
            "Age of values in the last answer that used the view.",
            labels=("view", "of"),
        )
        for view, ages in sorted(self._last.copy().items()):
            for which, age_us in zip(("oldest", "newest"), ages, strict=True):
                family.add_metric((view, which), age_us / 1e6)
        yield family


class _Scores(Collector):
    """Histograms of probabilities; an answer's are added at once, as a call a place would cost more than scoring it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], np.ndarray] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def add(self, labels: tuple[str, str], values: np.ndarray) -> None:
        """Counts above the last bound are there too: nothing is lost of a probability that is none."""
        counts = np.bincount(np.searchsorted(PROBABILITIES, values), minlength=len(PROBABILITIES) + 1)
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + float(values.sum())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "scenerank_score", "Probabilities of the places that were answered.", labels=("scenario", "of")
        )
        with self._lock:
            counts, sums = dict(self._counts), dict(self._sums)
        bounds = (*(str(bound) for bound in PROBABILITIES), "+Inf")
        for labels, found in sorted(counts.items()):
            buckets = list(zip(bounds, accumulate(found.tolist()), strict=True))
            family.add_metric(labels, buckets, sums[labels])
        yield family
