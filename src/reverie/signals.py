"""Being asked to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone), heard whatever this process does.

Python runs the handlers of signals in its main thread, between two of its own instructions, so a compiled program holds
them up for as long as it runs. And an exception that a handler raises while garbage is collected, or an object ends its
life, is dropped. So a thread of its own listens at the pipe that Python writes each signal to at once, what must not be
lost is only noted, and an interrupt that was dropped is raised again. Signals are the process's: so is this state.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

GRACE = 5.0
"""Seconds that a compiled program has, after a signal, to come to the end of what it is doing."""

_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal ended what was being done before it was done; nothing of it is kept."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        """Of the signal."""


class _Asked:
    """What the listening thread and the main thread tell each other."""

    first: float | None = None
    """When the first signal came that has not been answered."""
    answer: float = -GRACE
    """When the main thread last ran a handler."""
    is_held: bool = False
    """The main thread has something to lose: it takes note, and goes on until it can stop."""
    again: str = ""
    """What is said where the process is left in the middle: how the work goes on."""


_asked = _Asked()


def is_overdue() -> bool:
    """Whether a signal came over `GRACE` seconds ago and the work goes on: time to leave it. Any thread may ask."""
    return _asked.first is not None and time.monotonic() - _asked.first > GRACE


class Notes:
    """Signals that came. Each raises `Stopped` until there is something to lose (`hold`), and is only noted from then
    on; a second one of a kind acts as usual."""

    def __init__(self):
        self.caught: list[int] = []

    def hold(self) -> None:
        """From now on a signal is only noted."""
        _asked.is_held = True

    def __bool__(self) -> bool:
        return bool(self.caught)


@contextmanager
def noted() -> Generator[Notes]:
    """Collect signals, so that work can be saved.

    SIGHUP is left alone where it is ignored (nohup). Outside the main thread nothing can be collected.
    """
    notes = Notes()
    if threading.current_thread() is not threading.main_thread():
        yield notes
        return

    def note(number: int, _: object) -> None:
        _asked.answer = time.monotonic()
        notes.caught.append(number)
        signal.signal(number, usual[number])
        if not _asked.is_held:
            raise Stopped(number)

    usual = {int(number): signal.getsignal(number) for number in _STOPPING}
    usual = {n: handler for n, handler in usual.items() if n == signal.SIGINT or handler is not signal.SIG_IGN}
    with _listening(), _raised_again(lambda number: signal.signal(number, note)):
        for number in usual:
            signal.signal(number, note)
        try:
            yield notes
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)
            _asked.first, _asked.is_held = None, False


@contextmanager
def told(again: str) -> Generator[None]:
    """Of work that can go on: say `again` too, wherever the process has to be left in the middle of it."""
    before, _asked.again = _asked.again, again
    try:
        yield
    finally:
        _asked.again = before


@contextmanager
def heard(name: str) -> Generator[None]:
    """Of a command: Ctrl-C ends it within seconds. It raises KeyboardInterrupt; again, where that was dropped; and
    where a compiled program keeps the main thread from raising it, the process ends without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        _asked.answer = time.monotonic()
        raise KeyboardInterrupt

    def leave(number: int) -> None:
        print(f"reverie {name}: interrupted{_asked.again}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with _listening(leave), _raised_again():
            yield
    finally:
        signal.signal(signal.SIGINT, usual)
        _asked.first = None


@contextmanager
def at_once(name: str) -> Generator[None]:
    """While modules are imported: Ctrl-C ends the process there and then, as what is half imported cannot go on."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def leave(number: int, frame: object) -> None:
        os.write(2, f"reverie {name}: interrupted\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _raised_again(ready: Callable[[int], object] = lambda number: None) -> Generator[None]:
    """Send a signal anew whose exception was dropped; before that `ready` is told the number of one that `Stopped`."""
    before = sys.unraisablehook

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return before(unraisable)
        number = getattr(unraisable.exc_value, "number", signal.SIGINT)
        if issubclass(unraisable.exc_type, Stopped):  # a second one of a kind acts as usual, again too
            ready(number)
        later = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number))
        later.daemon = True
        later.start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _listening(leave: Callable[[int], None] | None = None) -> Generator[None]:
    """Have signals told to `_asked` as they come. `leave` ends the process where the main thread does not answer."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    usual = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(read, usual, leave), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(usual)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)


def _listen(read: int, others: int, leave: Callable[[int], None] | None) -> None:
    came: float | None = None  # a signal that the main thread may not have answered yet
    stopping = int(signal.SIGINT)  # which one that was
    while True:
        if not select.select([read], [], [], None if came is None else GRACE)[0]:
            if leave and came and _asked.answer < came - 1 and not _asked.is_held:
                leave(stopping)
            came = None
            continue
        number = os.read(read, 1)[0]
        if not number:
            return
        if others >= 0:
            os.write(others, bytes([number]))  # whoever listened before hears it as well
        if number in _STOPPING:
            stopping, came = number, time.monotonic()  # it can have been answered up to a second before it was read
            _asked.first = _asked.first or came
