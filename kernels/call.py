"""Call a kernel on torch tensors: `run("rmsnorm", x, scale, eps=1e-5)`.

On a CPU the tensors go through NumPy to the interpreter (or AWS's simulator); on a device they are passed
as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from tp_harness.kernels import compat, registry
from tp_harness.kernels.registry import KernelSpec


class KernelArgumentError(ValueError):
    """A tensor does not have the dimensions or the type that the kernel's docstring gives."""


def run(name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel on torch tensors and return torch tensors.

    Args:
        name: a name of the registry.
        args, kwargs: the kernel's arguments; tensors in float32 or bfloat16 on any CPU memory layout.

    Returns:
        A tensor, or a tuple of them, shaped as the kernel's docstring says; unsigned integers come back as int64.

    Raises:
        KeyError: no kernel has that name.
        TypeError: an argument is missing, or the kernel has none of that name.
        KernelArgumentError: a tensor's shape or dtype is not what the kernel takes.
        NkiValidationError: the interpreter found an instruction that NKI would refuse.
    """
    item = registry.spec(name)
    bound = bind(item, *args, **kwargs)
    check_dtypes(item, bound)
    if compat.TOOLCHAIN.mode == "device":
        return item.kernel(**bound)
    arrays = {key: to_numpy(value) if isinstance(value, torch.Tensor) else value for key, value in bound.items()}
    result = compat.executable(item.kernel)(**arrays)
    return tuple(map(to_torch, result)) if isinstance(result, tuple) else to_torch(result)


def bind(item: KernelSpec, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Bind arguments to the kernel's parameters and check the tensors' dimensions.

    Raises:
        TypeError: an argument is missing, or the kernel has none of that name.
        KernelArgumentError: as `check_dims`.
    """
    bound = dict(inspect.signature(item.twin).bind(*args, **kwargs).arguments)
    check_dims(item, bound)
    return bound


def check_dims(item: KernelSpec, bound: Mapping[str, Any]) -> None:
    """Hold every tensor against the registry's symbols: equal symbols have equal sizes.

    Raises:
        KernelArgumentError: a tensor has another number of dimensions, or a symbol two sizes; gives both.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for operand, symbols in item.dims.items():
        shape = tuple(bound[operand].shape)
        expected = f"({', '.join(symbols)})"
        if len(shape) != len(symbols):
            raise KernelArgumentError(f"{item.name}: {operand} has shape {shape}, expected {expected}")
        for symbol, size in zip(symbols, shape, strict=True):
            known, where = sizes.setdefault(symbol, (size, operand))
            if known != size:
                detail = f"{symbol} is {size}, but {known} in {where}"
                raise KernelArgumentError(f"{item.name}: {operand} has shape {shape}, expected {expected}: {detail}")
    for double, single in (("2I", "I"), ("D", "D/2")):
        if double in sizes and single in sizes and sizes[double][0] != 2 * sizes[single][0]:
            detail = f"{double} is {sizes[double][0]}, {single} is {sizes[single][0]}"
            raise KernelArgumentError(f"{item.name}: {detail}")


def check_dtypes(item: KernelSpec, bound: Mapping[str, Any]) -> None:
    """Refuse tensors of types that NeuronCores do not compute in.

    Raises:
        KernelArgumentError: a tensor is neither float32 nor bfloat16.
    """
    for operand in item.dims:
        if bound[operand].dtype not in (torch.float32, torch.bfloat16):
            detail = f"{operand} is {bound[operand].dtype}, kernels take float32 and bfloat16"
            raise KernelArgumentError(f"{item.name}: {detail}")


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Copy a torch tensor to an array of the same shape and dtype; ml_dtypes gives NumPy bfloat16."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return an array as a tensor of the same shape and dtype; unsigned integers become int64."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind == "u":
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(array)
