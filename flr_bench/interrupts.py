"""Ctrl-C and SIGTERM: the first ends a run in good order, the second at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to end by SIGTERM, as a shell would say it."""
INTERRUPTED = 128 + signal.SIGINT


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; whatever deals with Ctrl-C deals with it too."""


class Interrupts:
    """What arrived.

    Attributes:
        exit_code: that the process should end with, or ``None`` if nothing arrived.
    """

    def __init__(self) -> None:
        """Nothing has arrived."""
        self.exit_code: int | None = None

    def receive(self, number: int, _: FrameType | None) -> NoReturn:
        """Interrupt the main thread, or end everything if that was done before.

        Raises:
            KeyboardInterrupt: at the first signal.
        """
        if self.exit_code is not None:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        self.exit_code = 128 + number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Treat both signals so meanwhile; yields what arrived.  In a thread that is not the main one, nothing changes."""
    arrived = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before = {number: signal.signal(number, arrived.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
