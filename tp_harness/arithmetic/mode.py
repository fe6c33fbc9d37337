"""The mode in which torch computes exactly: every operation on tensors that have numbers is done on these instead.

Operations arrive from torch's dispatcher with plain tensors: those of modules, of autograd's backward, of the local
parts of DTensors, and of torch.distributed. What no rule covers is computed on the shadows, its residues become
unknown, and `Seen` says which operation it was: nothing is proved then, and nothing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..libraries import torch_private
from ..libraries.torch_private import DispatchMode, leaves, tree_map
from .field import Numbers
from .floats import NOMINAL
from .memory import Memory
from .seen import Seen

aten = torch.ops.aten
Rule = Callable[..., Any]  # (mode, operation, *args, **kwargs) -> what the operation returns
RULES: dict[Any, Rule] = {}  # by operation, with all its overloads or one of them


def named(names: str) -> frozenset[Any]:
    """The operations of torch with these names, of those that this version of torch has."""
    return frozenset(getattr(aten, name) for name in names.split(" ") if hasattr(aten, name))


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_SHAPES_ALONE = ("FakeTensor", "FunctionalTensor")
# These read no element of what they are given.
_OF_SHAPE = named(
    "new_empty new_zeros new_ones new_full zeros_like ones_like empty_like full_like new_empty_strided is_same_size "
    "sym_size sym_stride sym_numel sym_storage_offset _has_same_storage_numel"
)
_UNWRITTEN = named("empty empty_like empty_strided empty_permuted new_empty new_empty_strided")
_KEEP_ELEMENTS = ("detach", "requires_grad")  # in-place operations that write no element


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Make a function the rule of operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


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
        if any(kind not in _PLAIN for kind in types):
            named = {kind.__name__ for kind in types}
            return func(*args, **kwargs) if named & set(_SHAPES_ALONE) else NotImplemented  # DTensor's own comes first
        packet = func.overloadpacket
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional"):
            return RULES[func.namespace](self, func, *args, **kwargs)
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(map(self.memory.hidden, tensors)):
            self.seen.escape(f"{func} reads the bits of a floating-point tensor as whole numbers")
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_chance(func, args, kwargs):
            self.seen.escape(f"{func} draws random numbers")
        if packet in _UNWRITTEN:
            out = func(*args, **kwargs)
            return self.memory.unwritten(out) if out.is_floating_point() and out.device.type == "cpu" else out
        if not any(map(self.memory.holds, tensors)) or packet in _OF_SHAPE:
            return func(*args, **kwargs)
        return self._exactly(func, packet, args, kwargs)

    def _exactly(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = RULES.get(func) or RULES.get(packet)
        if own is None and torch_private.is_composite(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if own is not None and not torch_private.writes(func):
            return own(self, func, *args, **kwargs)
        if torch_private.writes(func):
            return self._in_place(func, packet, args, kwargs)
        if torch_private.gives_views(func):
            out = func(*args, **kwargs)
            if all(self.memory.holds(x) for x in leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()):
                return out
            return self.lose(func, args, kwargs)
        return self._without_rule(func, args, kwargs)

    def _in_place(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation writes is computed by the one that returns it."""
        name = torch_private.operation_name(func)
        base, out = name.removesuffix("_"), kwargs.get("out")
        if base in _KEEP_ELEMENTS:
            return func(*args, **kwargs)
        written = torch_private.written(func, args, kwargs)
        functional = packet if out is not None else getattr(aten, base, None) if base != name else None
        if functional is None or len(written) != 1 or base in ("set", "resize"):
            return self._spoil(func, written, args, kwargs)
        given = {key: value for key, value in kwargs.items() if key != "out"}
        if not written[0].is_floating_point():
            shadows = tree_map(self.memory.shadow, (args, kwargs))
            return func(*shadows[0], **shadows[1])
        with self:
            result = functional(*args, **given)
        numbers = self.number(result)
        if base == "copy":
            numbers = self.narrowed(numbers, args[1].dtype, written[0].dtype)
        self.memory.write(written[0], numbers)
        return written[0]

    def _spoil(self, func: Any, written: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        """Run an operation that writes in a way without a rule; what it wrote is unknown from then on."""
        self.seen.escape(f"{func} writes to a tensor, and has no rule")
        out = func(*args, **kwargs)
        for x in written:
            if x.is_floating_point():
                self.memory.write(x, self.memory.unknown(torch.full(x.shape, float("nan"), dtype=torch.float64)))
        return out

    def _without_rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """By torch's own decomposition, or else as a keyed function of each element."""
        decomposition = torch_private.decomposition(func)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        if torch.Tag.pointwise in func.tags:
            return self.keyed(func, args, kwargs)
        return self.lose(func, args, kwargs)

    # what rules use

    def number(self, x: Any) -> torch.Tensor:
        """The numbers of an operand: a tensor of any dtype and shape, or a number of the program (then (rows,))."""
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
        """An operation on each element, of which nothing else is known; other arguments are part of its name; any
        shape.
        """
        shadows, named = tree_map(self.memory.shadow, (args, kwargs))
        shadow = func(*shadows, **named)
        if not (isinstance(shadow, torch.Tensor) and shadow.is_floating_point()):
            return self.lose(func, args, kwargs)
        given = [self.number(x) for x in args if isinstance(x, torch.Tensor)]
        shape = (self.field.rows, *shadow.shape)
        given = [x.reshape(x.shape[0], *[1] * (len(shape) - x.dim()), *x.shape[1:]).expand(shape) for x in given]
        others = [x for x in args if not isinstance(x, torch.Tensor)]
        name = f"{torch_private.operation_name(func)} {others} {sorted(kwargs.items(), key=str)}"
        return self.new(self.field.keyed(name, shadow.to(torch.float64), given), result_dtype(args, kwargs))

    def lose(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation without a rule on the shadows; its residues are unknown from here on."""
        self.seen.escape(f"{func} has no rule")
        shadows, named = tree_map(self.memory.shadow, (args, kwargs))
        dtype = result_dtype(args, kwargs)
        try:
            out = func(*shadows, **named)
        except RuntimeError:  # it wants the dtypes that it was given
            plain = [x.to(y.dtype) if isinstance(y, torch.Tensor) else x for x, y in zip(shadows, args, strict=True)]
            out = func(*plain, **named)
        return tree_map(lambda x: self._unknown(x, dtype), out)

    def _unknown(self, x: Any, dtype: torch.dtype) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        return self.new(self.memory.unknown(x.to(torch.float64)), dtype)


SINGLE = torch.finfo(torch.float32).eps


def result_dtype(args: Any, kwargs: Any = None) -> torch.dtype:
    """The dtype to which torch promotes the floating-point tensors among arguments; a `dtype` that is given counts."""
    if kwargs and kwargs.get("dtype") is not None:
        return kwargs["dtype"]
    found = [x for x in leaves((args, kwargs or {})) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    wide = [x for x in found if x.dim()] or found
    dtype = wide[0].dtype
    for x in wide[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _without_chance(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call that may draw random numbers draws none: dropout with p = 0, or attention without dropout."""
    names = torch_private.argument_names(func)
    named = dict(zip(names, args, strict=False)) | kwargs
    return ("dropout_p" in names and not named.get("dropout_p")) or ("p" in names and named.get("p") == 0)
