"""The child of watchdog.py: reads its parent's signs of life from stdin; imports nothing but what Python brings."""

from __future__ import annotations

import os
import select
import signal
import sys
import time


def watch(frozen_after_s: float) -> None:
    """Until stdin ends, or the parent is overdue and killed."""
    parent, waiting = os.getppid(), b""
    heard, deadline = time.monotonic(), float("inf")
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        now = time.monotonic()
        if readable:
            got = os.read(sys.stdin.fileno(), 4096)
            if not got:
                return
            heard, waiting = now, waiting + got
            *lines, waiting = waiting.split(b"\n")
            for line in lines:
                words = line.decode().split()
                if words[0] == "begin":
                    deadline = now + float(words[1])
                elif words[0] == "end":
                    deadline = float("inf")
        if now - heard > frozen_after_s or now > deadline:
            if os.getppid() == parent:  # else the parent is gone, and its number may be someone else's
                os.kill(parent, signal.SIGKILL)
            return


if __name__ == "__main__":
    watch(float(sys.argv[1]))
