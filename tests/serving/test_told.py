"""A process that waits to be told to stop hears it, whichever of its threads the system gave the signal to."""

from __future__ import annotations

import subprocess
import sys

import pytest

WAITS = """
import signal, sys, threading, time
from serving.told import Told

def tell():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident() if sys.argv[1] == "another" else threading.main_thread().ident, number)
    time.sleep(60)

number, told = getattr(signal, sys.argv[2]), Told()
threading.Thread(target=tell, daemon=True).start()
told.wait()
print("told")
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_signal_is_heard_whichever_thread_takes_it(thread: str, number: str) -> None:
    """A server in a busy run never ended: another thread had taken its SIGTERM, and the main one waited on."""
    done = subprocess.run([sys.executable, "-c", WAITS, thread, number], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
