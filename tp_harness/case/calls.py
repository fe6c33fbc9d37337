"""The calls of one run of a module: what each is given, and what it returns and leaves, as tensors with path names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ..arithmetic.casts import cast_tensor
from ..errors import UsageError
from ..parallel.ambient import holding
from ..results.tensor_names import BEGIN, INPUT, OUTPUT, of_call
from .dropout import Shape, locked_dropout
from .module_state import remembered
from .tensor_paths import Change, changed_in, children, results_in, state_of, tensors_in


class Now(NamedTuple):
    """The call that runs in this thread: its name, and whether it is the first of its run."""

    name: str
    first: bool


_ONLY = Now("", first=True)
_now: ContextVar[Now] = ContextVar("call", default=_ONLY)


def now() -> Now:
    """The call that runs in this thread."""
    return _now.get()


@dataclass(frozen=True)
class Output:
    """What an earlier call returned, in the place of an argument of a later one.

    Args:
        call: the name of the earlier call.
        path: of a part, as `past.3.key`: positions, keys and attributes; "" is all that it returned.
    """

    call: str
    path: str = ""


class Call:
    """One call of a module: `Call(x, mask=mask)` is what `forward` is given.

    Arguments are tensors (full, on the CPU), `Output`s of earlier calls, anything made of both, and other values.
    """

    anew = False  # begins with the state that the first call began with

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def from_start(self) -> Call:
        """The same call of the module as it was before the first call."""
        call = Call(*self.args, **self.kwargs)
        call.anew = True
        return call

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors given, any shape and dtype, by names such as `input.0` and `input.mask`."""
        return tensors_in({**dict(enumerate(self.args)), **self.kwargs}, INPUT.rstrip("."))

    def changed(self, change: Change) -> Call:
        """The same call with other tensors; `change` is given names as those of `tensors`."""
        args = tuple(changed_in(x, f"{INPUT}{i}", change) for i, x in enumerate(self.args))
        call = Call(*args, **{key: changed_in(x, f"{INPUT}{key}", change) for key, x in self.kwargs.items()})
        call.anew = self.anew
        return call

    def references(self) -> Iterator[Output]:
        """The outputs of earlier calls that it is given."""
        found: list[Output] = []
        _with_outputs((self.args, self.kwargs), found.append)
        return iter(found)


@dataclass(frozen=True)
class Same:
    """Calls that must give the same: what `whole` returns is what `parts` return, joined along `dim`.

    So a prompt at once is the same as its chunks, and a batch the same as each row alone.

    Args:
        whole: the name of a call.
        parts: the names of calls, in order.
        dim: the dimension along which their outputs are joined.
        path: of the output, as in `Output`.
    """

    whole: str
    parts: tuple[str, ...]
    dim: int
    path: str = "0"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs: that of `whole`, then those of `parts`."""
        return tuple(of_call(call, f"{OUTPUT}{self.path}") for call in (self.whole, *self.parts))


@dataclass(frozen=True)
class Calls:
    """The calls of a run by name, in order; an only call has the name "".

    In training mode, dropouts drop what `seed` says; `dropped` are the full shapes of what they are given, in order.
    """

    each: Mapping[str, Call]
    seed: int = 0
    dropped: tuple[Shape, ...] = ()

    @staticmethod
    def of(given: object) -> Calls:
        """The only call of what `Case.inputs` returns: a tuple, a dict of keyword arguments, or a Call.

        Raises:
            TypeError: it is something else.
        """
        if isinstance(given, Call):
            return Calls({"": given})
        if isinstance(given, (tuple, list)):
            return Calls({"": Call(*given)})
        if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
            return Calls({"": Call(**given)})
        raise TypeError(type(given).__name__)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors given, any shape and dtype, by name: `input.0`, with named calls `decode/input.0`."""
        return {of_call(name, path): x for name, call in self.each.items() for path, x in call.tensors()}

    @property
    def plain(self) -> bool:
        """Whether there is one call of tensors alone, in order."""
        call = self.each.get("")
        return call is not None and not call.kwargs and all(isinstance(x, torch.Tensor) for x in call.args)

    def changed(self, change: Change) -> Calls:
        """The same calls with other tensors."""

        def of(name: str) -> Change:
            return lambda path, x: change(of_call(name, path), x)

        return replace(self, each={name: call.changed(of(name)) for name, call in self.each.items()})

    def copied(self, dtype: torch.dtype) -> Calls:
        """The same calls with copies of the tensors, which a module may write to, cast as `cast_tensor` does."""
        return self.changed(lambda _name, x: cast_tensor(x, dtype).clone())

    def run(
        self,
        module: Any,
        read: Change = lambda _name, x: x,
        state: Sequence[str] = (),
        dropped: list[Shape] | None = None,
        needed: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Call the module as often as there are calls.

        Args:
            module: what is called; an nn.Module where `state` names some.
            read: what is recorded of a tensor.
            state: path patterns of the module's tensors that are recorded before the first call and after each.
            dropped: gets the shapes of what dropouts are given, in order.
            needed: whether every call must return a tensor.

        Returns:
            By name, what every call returned and left, any shape and dtype, in order.

        Raises:
            TypeError: a call returned no tensor.
            LookupError: an `Output` that no earlier call returned.
        """
        several, returned = len(self.each) > 1 or bool(state), dict[str, Any]()
        restore = remembered(module) if any(call.anew for call in self.each.values()) else None
        found: dict[str, torch.Tensor] = {}

        def record(call: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
            for path, x in tensors:
                name = of_call(call, path)
                own = read(name, x)
                found[name] = own.detach().clone() if several else own  # a later call may write to it

        if state:
            record(BEGIN, state_of(module, state))
        with locked_dropout(module, self.seed, self.dropped) as seen:
            for name, call in self.each.items():
                if call.anew and restore:
                    restore()
                args, kwargs = _with_outputs((call.args, call.kwargs), lambda output: _look_up(output, returned))
                with holding(_now, Now(name, first=not returned)):
                    value = module(*args, **kwargs)
                returned[name] = value
                record(name, state_of(module, state))  # before what follows from it
                record(name, results_in(value, needed=needed))
        if dropped is not None:
            dropped += seen
        return found


def _with_outputs(value: Any, look_up: Callable[[Output], Any]) -> Any:
    """The value with what `look_up` gives for each Output in tuples, lists and dicts."""
    if isinstance(value, Output):
        return look_up(value)
    if type(value) is dict:
        return {key: _with_outputs(x, look_up) for key, x in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_with_outputs(x, look_up) for x in value)
    return value


def _look_up(output: Output, returned: Mapping[str, Any]) -> Any:
    value = returned[output.call]
    for key in filter(None, output.path.split(".")):
        found = {str(name): child for name, child in children(value)}
        if key not in found:
            there = ", ".join(found) or "none"
            raise LookupError(f"{output} names a part that the call {output.call} did not return: there are {there}")
        value = found[key]
    return value


def check_calls(who: str, given: object) -> Calls:
    """The calls of what `Case.calls` returned: a mapping of names to Calls.

    Raises:
        UsageError: it is something else, or a call is given the output of one that is not before it.
    """
    if not isinstance(given, Mapping) or not given or not all(isinstance(x, Call) for x in given.values()):
        raise UsageError(f'{who} returns {given!r:.60}; a dict of Calls is needed, for example {{"prefill": Call(x)}}.')
    for number, (name, call) in enumerate(given.items()):
        if not isinstance(name, str) or not name or "/" in name or name == BEGIN:
            raise UsageError(f"{who} names a call {name!r}; a text without / is needed, other than {BEGIN!r}.")
        for output in call.references():
            if output.call not in [*given][:number]:
                raise UsageError(f"{who} gives {name} the output of {output.call!r}, which is no call before it.")
    return Calls(dict(given))
