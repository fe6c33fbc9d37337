"""The mode in which torch computes exactly: every operation on tensors that have numbers is done on these instead.

Operations arrive from torch's dispatcher with plain tensors: those of modules, of autograd's backward, of the local
parts of DTensors, and of torch.distributed. What no rule covers is computed on the shadows, its residues become
unknown, and `Seen` says which operation it was: nothing is proved then, and nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..libraries import torch_private
from ..libraries.torch_private import DispatchMode, leaves, tree_map
from .floats import NOMINAL
from .memory import Memory
from .operations import PAIRS, Operation, looked_up, without_chance
from .residues.field import Numbers
from .seen import Seen

_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_SHAPES_ALONE = ("FakeTensor", "FunctionalTensor")


class ExactMode(DispatchMode):
    """Computes with the numbers of a memory inside its `with` block; the outermost mode of a thread."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory, self.field = memory, memory.field

    @property
    def seen(self) -> Seen:
        """What the run went through so far."""
        return self.memory.seen

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for kind in types:
            if kind not in _PLAIN:
                named = {kind.__name__ for kind in types}
                # a DTensor's own handler comes first
                return func(*args, **kwargs) if named & set(_SHAPES_ALONE) else NotImplemented
        if torch_private.function_modes():  # of TorchScript and of autograd: what rules do is no call of the module's
            with torch_private.without_function_modes():
                return self._dispatch(func, args, kwargs)
        return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = looked_up(func)
        held, hidden = self.memory.look(args, kwargs)
        if hidden:
            done = self._of_another_kind(func, operation, args, kwargs)
            if done is not NotImplemented:
                return done
        if operation.collective and operation.rule is not None:
            return operation.rule(self, func, *args, **kwargs)
        if operation.random and not without_chance(func, args, kwargs):
            self.seen.escape(f"{func} draws random numbers")
        if operation.unwritten:
            out = func(*args, **kwargs)
            return self.memory.unwritten(out) if out.is_floating_point() and out.device.type == "cpu" else out
        if not held or operation.of_shape:
            return self._plainly(func, operation, args, kwargs)
        return self._exactly(func, operation, args, kwargs)

    def _of_another_kind(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation on complex tensors returns, which are views of tensors of pairs; else NotImplemented."""
        kinds = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor) and self.memory.look(x)[1]]
        if not all(x.is_complex() for x in kinds):
            self.seen.escape(f"{func} reads the bits of a floating-point tensor as whole numbers")
            return NotImplemented
        if operation.views and not operation.writes:
            return func(*args, **kwargs)
        rule = PAIRS.get(func.overloadpacket)
        if rule is None and operation.composite and not operation.writes:
            with self:
                return torch_private.decomposed(func, args, kwargs)
        done = NotImplemented if rule is None or operation.writes else rule(self, *args, **kwargs)
        if done is NotImplemented:
            self.seen.escape(f"{func} computes with complex numbers, and has no rule")
        return done

    def _plainly(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation on constants."""
        if operation.growing:
            self.seen.escape(f"{func} gives a tensor memory that no operation wrote")
        if operation.foreign and not args[0].untyped_storage().resizable():
            self.seen.escape("memory of NumPy's became a tensor while the module ran")
        return func(*args, **kwargs)

    def _exactly(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation.writes:
            return self._in_place(func, operation, args, kwargs)
        if operation.rule is not None:
            return operation.rule(self, func, *args, **kwargs)
        if operation.composite or operation.each:
            with self:
                parts = torch_private.decomposed(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
        if operation.views:
            out = func(*args, **kwargs)
            if all(self.memory.holds(x) for x in leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()):
                return out
            return self.lose(func, args, kwargs)
        return self._without_rule(func, operation, args, kwargs)

    def _in_place(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation writes is computed by the one that returns it."""
        if operation.keeps:
            return func(*args, **kwargs)
        if operation.each:
            with self:
                return torch_private.decomposed(func, args, kwargs)
        done = self._at_once(func, operation, args, kwargs)
        if done is not NotImplemented:
            return done
        written = torch_private.written(func, args, kwargs)
        if operation.functional is None or operation.growing or len(written) != 1:
            return self._spoil(func, written, args, kwargs)
        with self:
            result = operation.functional(*args, **{key: value for key, value in kwargs.items() if key != "out"})
        if not isinstance(result, torch.Tensor):
            return self._spoil(func, written, args, kwargs)
        self._put(written[0], result)
        return written[0]

    def _at_once(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an in-place operation with a rule of its own returns, or a copy of a part of a variable; else
        NotImplemented.
        """
        if func.overloadpacket is torch.ops.aten.copy_ and self.memory.move(args[1], args[0]):
            return func(*args, **kwargs)
        if operation.rule is None or operation.name == operation.base:
            return NotImplemented
        return operation.rule(self, func, *args, **kwargs)

    def _put(self, into: torch.Tensor, result: torch.Tensor) -> None:
        """Write a result of an operation, of any shape, as torch casts it."""
        if into.is_floating_point():
            numbers = self.number(result)
            self.memory.write(into, self.narrowed(numbers, result.dtype, into.dtype))
            return
        if result.is_floating_point():
            self.seen.escape(f"floating-point numbers are made {into.dtype}")
        into.copy_(self.memory.shadow(result).broadcast_to(into.shape))

    def _spoil(self, func: Any, written: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        """Run an operation that writes in a way without a rule; what it wrote is unknown from then on."""
        self.seen.escape(f"{func} writes to a tensor, and has no rule")
        out = func(*args, **kwargs)
        for x in written:
            if x.is_floating_point():
                self.memory.write(x, self.memory.unknown(torch.full(x.shape, float("nan"), dtype=torch.float64)))
        return out

    def _without_rule(self, func: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """By torch's own decomposition, or else as a keyed function of each element.

        Of a function of one element, torch's table has only that it is a primitive one.
        """
        decomposition = torch_private.decomposition(func)
        primitive = operation.pointwise and decomposition is not None and decomposition.__module__ == "torch._refs"
        if decomposition is not None and not primitive:
            with self:
                return decomposition(*args, **kwargs)
        if operation.pointwise:
            return self.keyed(func, args, kwargs)
        return self.lose(func, args, kwargs)

    # what rules use

    def number(self, x: Any) -> torch.Tensor:
        """The numbers of an operand: a tensor of any dtype and shape, or a number of the program (then (rows,))."""
        if isinstance(x, complex) or (isinstance(x, torch.Tensor) and x.is_complex()):
            self.seen.escape("a real tensor and a complex number meet, which has no rule")
            x = x.real
        if not isinstance(x, torch.Tensor):
            return self.field.scalar(int(x) if isinstance(x, bool) else x)
        if x.is_floating_point():
            return self.memory.read(x)
        return self.field.constants(x.to(torch.float64)) if x.dim() else self.field.scalar(int(x))

    def new(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of numbers, (rows, *shape), in the nominal dtype that torch would give it."""
        return self.memory.new(numbers, dtype)

    def computed(self, numbers: Numbers, dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of numbers, any shape, that an operation computed and rounds to fewer digits than float32."""
        return self.new(self.narrowed(numbers, NOMINAL, dtype), dtype)

    def narrowed(self, numbers: torch.Tensor, source: torch.dtype, into: torch.dtype) -> torch.Tensor:
        """Numbers of any shape rounded to fewer digits than float32 has: a keyed function, and a rounded shadow."""
        if not (source.is_floating_point and into.is_floating_point) or torch.finfo(into).eps <= SINGLE:
            return numbers
        if torch.finfo(into).eps <= torch.finfo(source).eps:
            return numbers
        rounded = numbers[0].to(into).to(torch.float64)
        return self.field.keyed(f"rounded to {into}", rounded, [numbers])

    def keyed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """An operation on each element, of which nothing else is known; other arguments and the places of the tensors
        are part of its name; any shape.
        """
        shadows, named = tree_map(self.memory.shadow, (args, kwargs))
        shadow = func(*shadows, **named)
        if not (isinstance(shadow, torch.Tensor) and shadow.is_floating_point()):
            return self.lose(func, args, kwargs)
        given = [self.number(x) for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        shape = (self.field.rows, *shadow.shape)
        given = [x.reshape(x.shape[0], *[1] * (len(shape) - x.dim()), *x.shape[1:]).expand(shape) for x in given]
        others = tree_map(lambda x: ... if isinstance(x, torch.Tensor) else x, (args, sorted(kwargs.items())))
        name = f"{looked_up(func).name} {others}"
        return self.new(self.field.keyed(name, shadow.to(torch.float64), given), result_dtype(args, kwargs))

    def lose(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation without a rule on the shadows; its residues are unknown from here on."""
        self.seen.escape(f"{func} has no rule")
        dtype = result_dtype(args, kwargs)
        try:
            shadows, named = tree_map(self.memory.shadow, (args, kwargs))
            out = func(*shadows, **named)
        except Exception:  # it wants the dtypes that it was given
            shadows, named = tree_map(self._as_given, (args, kwargs))
            out = func(*shadows, **named)
        return tree_map(lambda x: self._unknown(x, dtype), out)

    def _as_given(self, x: Any) -> Any:
        return self.memory.shadow(x).to(x.dtype) if isinstance(x, torch.Tensor) else x

    def _unknown(self, x: Any, dtype: torch.dtype) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        return self.new(self.memory.unknown(x.to(torch.float64)), dtype)


SINGLE = torch.finfo(torch.float32).eps


def _floating(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for x in values:
        if isinstance(x, torch.Tensor):
            if x.is_floating_point():
                yield x
        elif isinstance(x, (list, tuple)):
            yield from _floating(x)


def result_dtype(args: Any, kwargs: Any = None) -> torch.dtype:
    """The dtype to which torch promotes the floating-point tensors among arguments; a `dtype` that is given counts."""
    if kwargs and kwargs.get("dtype") is not None:
        return kwargs["dtype"]
    found = list(_floating((args, tuple((kwargs or {}).values()))))
    wide = [x for x in found if x.dim()] or found
    dtype = wide[0].dtype
    for x in wide[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
