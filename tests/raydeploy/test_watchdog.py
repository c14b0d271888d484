from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, signal, sys, time
from raydeploy.watchdog import Watchdog
watchdog = Watchdog({stuck}, {frozen})
{body}
watchdog.close()
print("lived", flush=True)
"""


def run(body: str, stuck: float = 0.0, frozen: float = 60.0) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body, stuck=stuck, frozen=frozen)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_work_that_ends_in_time_is_left_alone() -> None:
    body = "for _ in range(3):\n    with watchdog.limited(): time.sleep(0.05)\ntime.sleep(1.5)"
    done = run(body, stuck=1.0)
    assert (done.returncode, done.stdout) == (0, "lived\n"), done.stderr


@pytest.mark.parametrize("body", ["with watchdog.limited(): time.sleep(50)", "with watchdog.limited():\n  while 1: 0"])
def test_work_that_does_not_end_is_ended(body: str) -> None:
    assert run(body, stuck=1.0).returncode == -signal.SIGKILL


def test_a_frozen_process_is_ended() -> None:
    assert run("os.kill(os.getpid(), signal.SIGSTOP)", frozen=2.5).returncode == -signal.SIGKILL


def test_the_child_ends_with_its_parent() -> None:
    body = "print(watchdog._child.pid, flush=True)\nos._exit(3)"
    done = run(body)
    assert done.returncode == 3
    child = int(done.stdout)
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")
