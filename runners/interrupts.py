"""Ctrl-C and SIGTERM while jobs run: not lost, and not heard a second time while cleaning up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """What it gives raises KeyboardInterrupt once more after one that was dropped, as Python drops an exception that a
    signal raises within a finalizer or the callback of a weak reference."""
    if threading.current_thread() is not threading.main_thread():  # which never sees one
        yield lambda: None
        return
    heard = threading.Event()

    def remembering(handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
        def remember(number: int, frame: FrameType | None) -> None:
            heard.set()
            handler(number, frame)

        return remember

    def again() -> None:
        if heard.is_set():
            raise KeyboardInterrupt

    before = {number: handler for number in NUMBERS if callable(handler := signal.getsignal(number))}
    try:
        for number, handler in before.items():
            signal.signal(number, remembering(handler))
        yield again
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C, or a second word to stop, does not keep us from cleaning up after the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
