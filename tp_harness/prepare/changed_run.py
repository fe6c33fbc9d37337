"""Runs of the single-core reference with something changed, to reproduce the numbers of a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats
from ..case.case import Case
from .oracle import ReferenceRun, Tapped, locks_of, run_reference


def run_with(
    tapped: Tapped,
    case: Case,
    arithmetic: Floats | Exact,
    tensors: Mapping[str, torch.Tensor],
    *,
    tied: Mapping[str, str] | None = None,
    outputs: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    watched: AbstractContextManager[object] | None = None,
    given: Callable[[str, torch.Tensor], object] | None = None,
) -> ReferenceRun:
    """Run the single-core reference with something changed, with the oracle's routing and all taps.

    Args:
        tapped: the reference, and its inputs.
        case: the case of the reference.
        arithmetic: of the run.
        tensors: by name, other values of parameters and buffers, of the same shapes and dtypes.
        tied: as `run_reference` wants it.
        outputs: by name, a function from a submodule's output to its replacement.
        watched: entered while the reference runs.
        given: called with the name of every submodule and its first input, any shape, if that is floating-point.

    Returns:
        Outputs of the same shapes as the oracle's, and their taps, in the arithmetic's dtype.

    Raises:
        KeyError: a name in `tensors` that the reference does not have.
        AttributeError: a name in `outputs` that it does not have.
    """
    locks = locks_of(case, tapped.oracle)

    def changed(module: nn.Module) -> ExitStack:
        stack = ExitStack()
        for name, change in (outputs or {}).items():
            hook = module.get_submodule(name).register_forward_hook(lambda _m, _i, y, change=change: change(y))
            stack.callback(hook.remove)
        for name, submodule in module.named_modules() if given else ():
            tell = lambda _m, inputs, name=name: _tell(given, name, inputs)  # noqa: E731
            stack.callback(submodule.register_forward_pre_hook(tell).remove)
        stack.enter_context(watched or nullcontext())
        return stack

    names = {name: case.prefix + name for name in tensors}
    others = {(tied or {}).get(stored, stored): tensors[name] for name, stored in names.items()}
    with _holding(tapped.reference, {name: arithmetic.plain(values) for name, values in tensors.items()}):
        return run_reference(
            case,
            tapped.reference,
            tapped.calls,
            arithmetic.again(others),
            locks,
            tied=tied,
            taps=True,
            within=changed,
        )


@contextmanager
def _holding(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Replace the values of parameters and buffers inside the block."""
    held = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    before = {name: held[name].data for name in tensors}
    try:
        for name, values in tensors.items():
            held[name].data = values.detach().clone()
        yield
    finally:
        for name, values in before.items():
            held[name].data = values


def _tell(given: Callable[[str, torch.Tensor], object] | None, name: str, inputs: tuple[object, ...]) -> None:
    if given and inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].is_floating_point():
        given(name, inputs[0])
