"""In a rank: write the stack of every thread into the log when the launcher asks. No torch.

A thread of its own writes while it holds Python's lock, so that no other thread runs meanwhile; it gets the lock also
while the others wait in C++. faulthandler writes in a signal's handler, whatever the threads do: one dump in a thousand
ends with a segmentation fault if the interrupted thread runs Python code, and one in a hundred if another thread does.
So it is asked second, when nothing was written because some C code keeps the lock and no Python code runs.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

ASK, INSIST = signal.SIGUSR1, signal.SIGUSR2  # the signals for the thread here, and for faulthandler
MOST_FRAMES = 100  # of a thread, as faulthandler writes


def write_stacks_on_request() -> None:
    """Write all stacks to standard error on the signals `ASK` and `INSIST` from now on; call it in the main thread."""
    faulthandler.register(INSIST, all_threads=True)
    exit_, entrance = os.pipe()
    os.set_blocking(entrance, False)
    signal.signal(ASK, lambda _number, _frame: None)
    signal.siginterrupt(ASK, False)  # C code in a system call, such as a read, is not interrupted
    signal.set_wakeup_fd(entrance, warn_on_full_buffer=False)  # written to at once, whatever the main thread does
    threading.Thread(target=_serve, args=(exit_,), name="stacks", daemon=True).start()


def _serve(requests: int) -> None:
    while numbers := os.read(requests, 64):
        if ASK in numbers:
            os.write(2, stacks_text().encode(errors="backslashreplace"))


def stacks_text() -> str:
    """The stack of every thread but this one, in faulthandler's form; the main thread is the last."""
    main = threading.main_thread().ident
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    order = sorted(frames, key=lambda ident: ident == main)
    return "".join(
        f"Thread {ident:#018x} (most recent call first):\n{''.join(_lines(frames[ident]))}" for ident in order
    )


def _lines(frame: FrameType | None) -> Iterator[str]:
    for _ in range(MOST_FRAMES):
        if frame is None:
            return
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno or 0} in {frame.f_code.co_name}\n'
        frame = frame.f_back
    yield "  ...\n" if frame else ""
