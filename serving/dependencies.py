"""Health by dependency: `store`, `feedback` and `index` beside the server itself in gRPC's health service.

The server stays SERVING as long as it can answer; the name of a dependency says NOT_SERVING while that is away. Each is
asked from time to time, and one that does not answer in time is away too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

from grpc_health.v1 import health_pb2

from serving.life import Life

log = logging.getLogger(__name__)
INTERVAL_S = 5.0
TIMEOUT_S = 2.0
STATUSES = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class Dependencies:
    """Asks every dependency, and says what came of it.

    Args:
        questions: of each, whether it is there; one that raises is not.
        found: told of each answer.
        interval_s, timeout_s: between questions; how long one may take.
    """

    def __init__(
        self,
        life: Life,
        questions: Mapping[str, Callable[[], bool]],
        found: Callable[[str, bool], None],
        *,
        interval_s: float = INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._life, self._questions, self._found = life, questions, found
        self._interval_s, self._timeout_s = interval_s, timeout_s
        for name in questions:
            life.set(name, health_pb2.HealthCheckResponse.UNKNOWN)  # until the first answer
        self._there: dict[str, bool] = {}
        self._asking: dict[str, threading.Thread] = {}
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dependencies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stops.set()
        self._thread.join(len(self._questions) * self._timeout_s)

    def _run(self) -> None:
        while True:
            for name, question in self._questions.items():
                there = self._ask(name, question)
                self._life.set(name, STATUSES[there])
                self._found(name, there)
                if there is not self._there.get(name, True):
                    log.warning("%s is %s", name, "back" if there else "away")
                self._there[name] = there
            if self._stops.wait(self._interval_s):
                return

    def _ask(self, name: str, question: Callable[[], bool]) -> bool:
        """The answer, if it comes in time; one that hangs is not asked again before it ends."""
        if (hangs := self._asking.get(name)) is not None and hangs.is_alive():
            return False
        answers: SimpleQueue[bool] = SimpleQueue()
        self._asking[name] = threading.Thread(target=_answer, args=(question, answers), name=f"ask {name}", daemon=True)
        self._asking[name].start()
        try:
            return answers.get(timeout=self._timeout_s)
        except Empty:
            return False


def _answer(question: Callable[[], bool], answers: SimpleQueue[bool]) -> None:
    try:
        answers.put(question())
    except Exception:  # however a store says that it is away
        answers.put(False)
