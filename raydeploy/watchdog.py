"""A child process that ends its parent when that hangs: in a step that never returns, or frozen as a whole.

The parent sends a tick every second from a thread of its own, and says when a limited piece of work begins and ends.
The child kills it with SIGKILL, which stopped processes obey too, when the ticks or the piece of work are overdue. Ray
then starts another worker, and the shard is treated as one that took its worker down.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICK_S = 1.0
CHILD = Path(__file__).with_name("watchdog_child.py")


class Watchdog:
    """Watches this process.

    Args:
        stuck_after_s: of one piece of work; 0: it may take for ever.
        frozen_after_s: without a sign of life.
    """

    def __init__(self, stuck_after_s: float, frozen_after_s: float) -> None:
        self.stuck_after_s = stuck_after_s
        command = [sys.executable, "-S", "-E", str(CHILD), str(frozen_after_s)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._tick, daemon=True, name="watchdog-ticks").start()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """End this process if the block takes longer than `stuck_after_s`."""
        if self.stuck_after_s:
            self._send(f"begin {self.stuck_after_s}")
        try:
            yield
        finally:
            if self.stuck_after_s:
                self._send("end")

    def close(self) -> None:
        """Watch no longer."""
        self._ended.set()
        with self._lock:
            if self._child.stdin is not None and not self._child.stdin.closed:
                self._child.stdin.close()  # the child ends by itself
        self._child.wait()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            self._send("tick")

    def _send(self, line: str) -> None:
        with self._lock:
            stdin = self._child.stdin
            if stdin is None or stdin.closed:
                return
            try:
                stdin.write(f"{line}\n".encode())
                stdin.flush()
            except BrokenPipeError:  # it was ended by someone; work goes on unwatched
                self._ended.set()
