"""Ctrl-C: whatever the command is doing, it ends within three seconds and says how to go on.

A KeyboardInterrupt is raised, as ever, so that what is open is closed. Python delivers it between
two of its own instructions, and a kernel, or a cluster that shuts down, may take longer: then a
thread ends the process. Nothing is lost by that, since a command may be killed at any moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

GRACE_S = 2.0
STATUS = 130
"""Of a command that Ctrl-C ended, as shells have it: 128 and the number of the signal."""

_hint = "nothing was begun; repeat the command"
_asked = threading.Event()
_leaving = threading.Lock()


def hint(text: str) -> None:
    """Set what Ctrl-C says from now on: what is kept, and how to go on."""
    global _hint
    _hint = text


@contextmanager
def watched() -> Iterator[None]:
    """Within the block Ctrl-C ends the process, with status 130 and the last `hint`.

    Does nothing within another such block, outside the main thread, or where Ctrl-C is ignored, as
    it is for what a script starts in the background.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    # Standard error may lead elsewhere for a moment when it is wanted.
    told, (look, woken) = os.dup(2), os.pipe()
    os.set_blocking(woken, False)
    before = -1
    try:
        signal.signal(signal.SIGINT, lambda *_: _interrupt(told))
        # Written to by the signal itself, also while the main thread is far from Python.
        before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        threading.Thread(target=_wait, args=(look, told), daemon=True).start()
        yield
    finally:
        # Whatever was made of the interrupt on its way here.
        if _asked.is_set():
            _leave(told)
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(woken)  # which ends the thread


def _interrupt(told: int) -> None:
    if _asked.is_set():
        _leave(told)  # asked twice
    _asked.set()
    raise KeyboardInterrupt


def _wait(look: int, told: int) -> None:
    while number := os.read(look, 1):
        if number[0] == signal.SIGINT:
            time.sleep(GRACE_S)
            _leave(told)
    os.close(look)
    os.close(told)


def _leave(told: int) -> NoReturn:
    """Say how to go on, and end the process; what else Python does at exit may wait for threads."""
    if _leaving.acquire(blocking=False):
        processes = sys.modules.get("multiprocessing.process")
        for child in processes.active_children() if processes else ():
            child.kill()
        # A bar that was cut off has hidden the cursor, and the terminal has written ^C.
        before = "\x1b[?25h\n" if os.isatty(told) else ""
        with suppress(OSError):
            os.write(told, f"{before}interrupted: {_hint}\n".encode())
    else:
        time.sleep(GRACE_S / 4)  # somebody else is saying it
    os._exit(STATUS)
