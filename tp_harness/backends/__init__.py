"""Backends by name. To add one: a file beside this one, and an entry in `BACKENDS`."""

import os

from ..errors import UnknownNameError, UsageError
from ..neuron.availability import automatic
from .base import POLL_SECONDS, Backend, RunningJob, Session, run_to_end
from .gloo import GlooBackend
from .local import LocalBackend
from .neuron import NeuronBackend
from .xla import XLABackend

BACKENDS: tuple[Backend, ...] = (GlooBackend(), LocalBackend(), XLABackend(), NeuronBackend())

__all__ = ["BACKENDS", "POLL_SECONDS", "Backend", "RunningJob", "Session", "choose_backend", "run_to_end"]


def choose_backend(name: str) -> Backend:
    """The backend of that name; for "auto", neuron where there are NeuronCores that can be used, else gloo.

    Where NeuronCores exist but cannot be used, gloo's `blind_spots` say so.

    Raises:
        UsageError: an unknown name, or a backend that this machine cannot run; the message says why.
    """
    if name == "auto":
        name, unused = automatic(os.environ)
        if unused:
            return GlooBackend(unused)
    by_name = {backend.name: backend for backend in BACKENDS}
    if name not in by_name:
        raise UnknownNameError("backend", name, ("auto", *by_name))
    reason = by_name[name].available()
    if reason:
        raise UsageError(f"backend {name} cannot run here: {reason}. `tp-harness list backends` shows those that can.")
    return by_name[name]
