"""build_module and validate_accuracy, with the signatures of neuronx_distributed_inference.utils.testing.

Tests written for those run unchanged, on gloo ranks where there is no NeuronCore. What differs: a checkpoint runs no
pickle, replicated outputs must agree on all ranks, and wrong shapes, dtypes, NaN and emptiness are always rejected.
"""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..case.placing.guessed_placements import check_guesses, said
from ..case.state_dict import load_weights, weights_of
from ..case.tried_placements import place_all
from ..checkpoint.checkpoint_files import check_file
from ..errors import UsageError
from ..neuron.devices import on_neuron
from ..nxd import join_if_used
from ..parallel.group import TorchGroup
from ..parallel.placements import Placement, Replicate
from .closeness import OutputError, assert_close
from .exactly import run_exactly
from .module_server import Made, ShardedModule
from .neuron_build import BuiltModel, Order, build, build_environment
from .seeded_checkpoint import make_checkpoint

logger = logging.getLogger("tp_harness")

StateDict = Mapping[str, torch.Tensor]


class FunctionModule(nn.Module):
    """A function as a module, for build_function."""

    def __init__(self, func: Callable[..., Any]) -> None:
        super().__init__()
        self.func = func

    def forward(self, *args: torch.Tensor) -> Any:
        """The function's own result for full tensors of any shape and dtype."""
        return self.func(*args)


def load_checkpoint(path: str | Path) -> StateDict:
    """Read a full state dict from a .safetensors file, or from a torch file without running any pickle.

    Returns:
        Name -> full tensor on the CPU, in the file's shapes and dtypes.

    Raises:
        UsageError: the file is neither, is truncated, or holds something other than named tensors.
    """
    path = Path(path)
    check_file(path)
    if path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
        raise UsageError(
            f"cannot read the checkpoint {path}: it is not what torch.save writes since torch 1.6, and not named "
            ".safetensors."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises a different type for each way a file can be bad
        raise UsageError(f"cannot read the checkpoint {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise UsageError(f"the checkpoint {path} holds no state dict of tensors.")
    return state


def build_module(  # noqa: PLR0917  (the public signature)
    module_cls: Callable[..., nn.Module],
    example_inputs: list[tuple[torch.Tensor, ...]],
    module_init_kwargs: dict[str, Any] | None = None,
    tp_degree: int = 1,
    world_size: int | None = None,
    local_ranks_size: int | None = None,
    compiler_args: str | None = None,
    compiler_workdir: str | None = None,
    checkpoint_path: str | None = None,
    priority_model_idx: int | None = 0,
    logical_nc_config: int = 1,
    dry_run: bool = False,
    checkpoint_loader_fn: Callable[[str], StateDict] = load_checkpoint,
) -> ShardedModule | BuiltModel | None:
    """Build the module on `tp_degree` ranks, each with its shard of the checkpoint, and keep them alive.

    They keep the environment that this process has now. On NeuronCores neuronx-distributed's ModelBuilder compiles and
    loads the module (neuron_build.py); elsewhere, and with PJRT_DEVICE=CPU, ranks are gloo processes. A parameter is
    sharded by the module's `plan` (a mapping, or a function of the config), else by neuronx-distributed's attributes
    (partition_dim, partition_stride), else along the one dimension in which full and local shape differ, by a factor
    of tp_degree: a guess, which is logged as a warning, and refused for possibly fused matrices, as [gate | up].

    Args:
        module_cls: class or factory; called as module_cls(**module_init_kwargs) on every rank.
        example_inputs: exactly one tuple of full tensors, any shapes and dtypes.
        tp_degree: number of ranks; world_size and local_ranks_size must equal it if given.
        compiler_args, compiler_workdir, priority_model_idx, logical_nc_config: for Neuron's compiler alone.
        checkpoint_path: a full state dict; made from the module with seed 0 when absent.
        dry_run: build on all ranks, then end them and return None.
        checkpoint_loader_fn: path -> full state dict: name -> tensor in its full shape, any dtype.

    Returns:
        A callable: full inputs in, full outputs out, in the module's own shapes and dtypes.

    Raises:
        ValueError: arguments that cannot be (UsageError is one), a bad checkpoint, or a parameter without a placement.
        ShardedModuleError: a rank could not build the module; the message names the rank and holds its traceback.
    """
    kwargs = {} if module_init_kwargs is None else module_init_kwargs
    _check_module(module_cls, kwargs)
    _check_inputs("example_inputs", example_inputs)
    if len(example_inputs) != 1:
        raise ValueError(f"example_inputs must contain exactly one tuple; it has {len(example_inputs)}")
    for name, value in (("world_size", world_size), ("local_ranks_size", local_ranks_size)):
        if value not in (None, tp_degree):
            raise UsageError(f"{name} is {value}, tp_degree {tp_degree}; only tensor parallelism is built here.")
    if not isinstance(tp_degree, int) or tp_degree < 1:
        raise UsageError(f"tp_degree is {tp_degree!r}; a positive integer is needed.")
    environment = build_environment(tp_degree) if on_neuron(os.environ) else None
    with tempfile.TemporaryDirectory(prefix="tp-harness-") as folder:
        path = Path(checkpoint_path or Path(folder) / "checkpoint.safetensors")
        if not path.exists():
            make_checkpoint(module_cls, kwargs, path)
        if environment is not None:
            order = Order(
                make=partial(module_cls, **kwargs),
                name=getattr(module_cls, "__name__", type(module_cls).__name__),
                example_inputs=example_inputs,
                tp_degree=tp_degree,
                load=partial(checkpoint_loader_fn, str(path)),
                compiler_args=compiler_args,
                compiler_workdir=compiler_workdir,
                priority_model_idx=priority_model_idx,
                logical_nc_config=logical_nc_config,
                dry_run=dry_run,
            )
            return build(order, environment)
        make = partial(_make_shard, module_cls, kwargs, str(path), checkpoint_loader_fn)
        output: Placement = getattr(module_cls, "output_placement", Replicate())
        module = ShardedModule(make, tp_degree, output, getattr(module_cls, "__name__", "module"))
    if module.note:
        logger.warning("build_module: %s", module.note)
    if dry_run:
        module.close()
        return None
    return module


def build_function(
    func: Callable[..., Any],
    example_inputs: list[tuple[torch.Tensor, ...]],
    tp_degree: int = 1,
    **options: Any,
) -> ShardedModule | BuiltModel | None:
    """Build a function of tensors as `build_module` builds a module; it returns and raises the same.

    Args:
        func: called on every rank with full tensors, any shapes and dtypes.
        example_inputs, tp_degree (ranks), options: as those of build_module.
    """
    return build_module(FunctionModule, example_inputs, {"func": func}, tp_degree, **options)


def validate_accuracy(
    neuron_model: Callable[..., Any],
    inputs: list[tuple[torch.Tensor, ...]],
    expected_outputs: list[Any] | None = None,
    cpu_callable: Callable[..., Any] | None = None,
    assert_close_kwargs: dict[str, Any] | None = None,
) -> None:
    """Raise AssertionError unless the model's outputs are close to the expected ones, for every input.

    Args:
        neuron_model: what build_module returned, or any callable of full tensors.
        inputs: a list of tuples of full tensors, any shapes and dtypes; not empty.
        expected_outputs: per input a tensor or tuple of tensors, each in the shape and dtype of the model's output.
        cpu_callable: computes what is expected; with expected_outputs too, it must agree with them first.
        assert_close_kwargs: rtol (times max |expected|) and atol (in the elements' unit), see closeness.assert_close.

    Raises:
        ValueError: nothing to compare with, lists of different lengths, or arguments of another kind.
        AssertionError: an output is not close.
    """
    if expected_outputs is None and cpu_callable is None:
        raise ValueError("provide expected_outputs or a cpu_callable to compare with")
    _check_inputs("inputs", inputs)
    if expected_outputs is not None and not isinstance(expected_outputs, list):
        raise ValueError(f"expected_outputs must be a list; it is a {type(expected_outputs).__name__}")
    expectations = [None] * len(inputs) if expected_outputs is None else expected_outputs
    if len(expectations) != len(inputs):
        raise ValueError(f"there are {len(expectations)} expected_outputs for {len(inputs)} inputs")
    tolerances = assert_close_kwargs or {}
    _check_callables(neuron_model=neuron_model, cpu_callable=cpu_callable)
    if not isinstance(tolerances, Mapping) or set(tolerances) - {"rtol", "atol"}:
        raise ValueError(f"assert_close_kwargs is {tolerances!r:.80}; it may hold rtol and atol, and nothing else.")
    for arguments, expectation in zip(inputs, expectations, strict=True):
        expected = expectation
        if cpu_callable is not None:
            computed = cpu_callable(*arguments)
            if expected is not None:
                assert_close(expected, computed, **tolerances)
            expected = computed if expected is None else expected
        try:
            assert_close(expected, neuron_model(*arguments), **tolerances)
        except OutputError as error:
            note = getattr(neuron_model, "note", "")
            raise OutputError(f"{error}\nIts parameters were {note}" if note else str(error), error.status) from None
        logger.info("accurate for inputs of shapes %s", [list(x.shape) for x in arguments])


def _make_shard(
    module_cls: Callable[..., nn.Module],
    kwargs: dict[str, Any],
    path: str,
    load: Callable[[str], StateDict],
    group: TorchGroup,
) -> Made:
    """This rank's module with its shards of the checkpoint, and which placements were guessed."""
    join_if_used()
    make = partial(module_cls, **kwargs)
    module, state = make(), load(path)
    plan = getattr(module, "plan", {})
    plan = plan(kwargs["config"]) if callable(plan) else plan
    local = weights_of(module, module_cls.__name__, keep_vars=True)
    missing, extra = sorted(set(local) - set(state)), sorted(set(state) - set(local))
    if missing or extra:
        raise UsageError(f"the checkpoint {path} lacks {missing} and has {extra} that the module does not know.")
    placed = place_all(plan, local, {name: tensor.shape for name, tensor in state.items()}, group.size)
    check_guesses(module, placed, group.size)
    shards = {p.name: p.placement.shard(state[p.name], group.rank, group.size) for p in placed}
    load_weights(module, shards, module_cls.__name__)
    exactly = partial(run_exactly, make, {p.name: p.placement for p in placed}, group)
    return Made(module=module, note=said(placed), exactly=exactly)


def _check_module(module_cls: Any, kwargs: Any) -> None:
    """Refuse what a rank could not build, or would take for a module's class."""
    name = getattr(module_cls, "__name__", type(module_cls).__name__)
    if isinstance(module_cls, nn.Module) or not callable(module_cls):
        given = f"a module, an instance of {name}" if callable(module_cls) else repr(module_cls)[:60]
        raise UsageError(f"module_cls is {given}; a class, or a function that returns a new module, is needed.")
    if not isinstance(kwargs, Mapping):
        raise UsageError(f"module_init_kwargs is {kwargs!r:.60}; a dict of {name}'s arguments is needed.")
    try:
        signature = inspect.signature(module_cls)
    except (TypeError, ValueError):  # some callables have none that can be read
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise UsageError(f"{name} cannot be called with module_init_kwargs {dict(kwargs)!r:.80}: {error}.") from None


def _check_callables(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise ValueError(f"{name} is {value!r:.60}; a function or a module is needed.")


def _check_inputs(name: str, inputs: Any) -> None:
    if not isinstance(inputs, list) or not all(
        isinstance(item, tuple) and all(isinstance(x, torch.Tensor) for x in item) for item in inputs
    ):
        raise ValueError(f"{name} must be a list of tensor tuples")
    if not inputs:
        raise ValueError(f"{name} must not be empty")
