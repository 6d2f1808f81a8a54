"""Ctrl-C put off while the weights change: they are never left between two iterations by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def put_off(said: Callable[[], None]) -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C in this block at the block's end; a second Ctrl-C is not put off.

    Does nothing where Ctrl-C is not Python's own affair: outside the main thread, or under another handler.

    Args:
        said: called at the Ctrl-C, to tell who waits.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        came.set()
        said()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.is_set():
        raise KeyboardInterrupt
