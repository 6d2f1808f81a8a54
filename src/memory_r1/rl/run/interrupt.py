"""Ctrl-C put off while the weights change: they are never left between two iterations by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def put_off(said: Callable[[], None], heard: Callable[[bool], bool] = bool) -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C in this block at the block's end; a second Ctrl-C is not put off.

    Does nothing where Ctrl-C is not Python's own affair: outside the main thread, or under another handler.

    Args:
        said: called at the Ctrl-C, to tell who waits.
        heard: asked at the end whether to raise, and told whether one came here; several processes ask each other.
    """
    ours = threading.current_thread() is threading.main_thread()
    came = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        came.set()
        said()

    handled = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if heard(came.is_set()):
        raise KeyboardInterrupt
