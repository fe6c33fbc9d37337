"""Backends by name. To add one: a file beside this one, and an entry in `BACKENDS`."""

from ..errors import UnknownNameError, UsageError
from .base import Backend, RunningJob, Session
from .gloo import GlooBackend
from .local import LocalBackend
from .xla import XLABackend

BACKENDS: tuple[Backend, ...] = (LocalBackend(), XLABackend(), GlooBackend())  # "auto": the last that is available

__all__ = ["BACKENDS", "Backend", "RunningJob", "Session", "choose_backend"]


def choose_backend(name: str) -> Backend:
    """The backend of that name, or the first available one for "auto".

    Raises:
        UsageError: an unknown name, or a backend that this machine cannot run; the message says why.
    """
    if name == "auto":
        return next(backend for backend in reversed(BACKENDS) if backend.available() is None)
    by_name = {backend.name: backend for backend in BACKENDS}
    if name not in by_name:
        raise UnknownNameError("backend", name, ("auto", *by_name))
    reason = by_name[name].available()
    if reason:
        raise UsageError(f"backend {name} cannot run here: {reason}. `tp-harness list backends` shows those that can.")
    return by_name[name]
