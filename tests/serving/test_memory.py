"""The memory of a server that answers and answers: flat, after what it keeps is full."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.workspace import Workspace
from serving.client import Access, Asker, Happened, Recommender, shown
from tests.conftest import ROOT, Project

CALLERS = 4
SAMPLES = 40
MOST_MIB = 8.0  # more at the end of the second half than at its beginning, whatever the number of requests
PATIENT = Access(timeout_seconds=60.0)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def grown(samples: list[float]) -> float:
    """MiB from the middle of the run to its end, along the line through the second half.

    >>> round(grown([0.0] * 50 + [2.0 * n for n in range(51)]))
    100
    """
    half = samples[len(samples) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    return slope * (len(half) - 1)


def full(requests: int, hours: float) -> Any:
    return pytest.param(requests, marks=[pytest.mark.full, pytest.mark.timeout(int(3600 * hours))])


@pytest.mark.parametrize("requests", [2_000, full(100_000, hours=1), full(1_000_000, hours=8)])
def test_memory_is_flat(workspace: Workspace, asker: Asker, poi_ids: list[str], requests: int) -> None:
    """Rank, Recommend, feedback, callers that give up, new words of the scene: of each some, by several callers."""
    project, samples = Project(ROOT, workspace), list[float]()
    with project.served("--unproven", "--workers", "2", "--waiting", "8", "--poi-age", "1") as served:
        numbers, lock = count(), threading.Lock()

        def call(_: int) -> None:
            with Recommender(served.address, PATIENT) as client:
                while (number := next(numbers)) < requests:
                    ask(client, asker, poi_ids, number)
                    if number % (requests // SAMPLES) == 0:
                        with lock:
                            samples.append(resident_mib(served.process.pid))

        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(call, range(CALLERS)))
    print(f"resident MiB: {', '.join(f'{mib:.0f}' for mib in samples)}; grown by {grown(samples):.1f}")
    assert len(samples) >= SAMPLES and grown(samples) < MOST_MIB


def ask(client: Recommender, asker: Asker, poi_ids: list[str], number: int) -> None:
    """One call; what is asked for differs from number to number."""
    who = Asker(
        user_id=f"u{number % 60}",
        scenario_id=asker.scenario_id,
        time=asker.time,
        place=asker.place,
        scene={"weather": f"weather of day {number}", "temperature": float(number % 40)},
    )
    if number % 10 == 3:
        client.recommend(who)
        return
    try:
        answer = client.rank(who, poi_ids[number % 20 :][:10], timeout_seconds=0.001 if number % 10 == 7 else None)
    except Exception as error:
        assert number % 10 == 7 and "DEADLINE_EXCEEDED" in str(error)
        return
    if number % 10 == 5:
        events = shown(answer, asker.time)
        clicked = Happened(token=answer.attribution_token, poi_id=answer.poi_ids[0], outcome="clicked", time=asker.time)
        client.record([*events, clicked])
