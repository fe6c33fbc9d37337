"""build_module and validate_accuracy: sharding by plan, by marks and by shapes; what is refused; nothing left over."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from served_modules import Column, Odd, RaisesOnRankOne, Row, ScaledColumn, Tied, X, two_outputs

from tp_harness.errors import UsageError
from tp_harness.parallel.placements import Placement, ReplicaError, Shard, StridedShard
from tp_harness.testing import build_function, build_module, load_checkpoint, validate_accuracy
from tp_harness.testing.module_server import ShardedModuleError


def full_weight(path: Path) -> torch.Tensor:
    return load_checkpoint(path)["weight"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("tp_degree", [1, 2, 8])
def test_sharded_by_shapes_and_joined(tmp_path: Path, tp_degree: int, suffix: str) -> None:
    path = tmp_path / f"full{suffix}"
    with build_module(Column, [(X,)], tp_degree=tp_degree, checkpoint_path=str(path)) as module:
        validate_accuracy(module, [(X,), (X[:1],)], cpu_callable=lambda x: x @ full_weight(path).T)
    assert full_weight(path).shape == (64, 8), "the checkpoint is the full one"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_extra_state_is_no_parameter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"full{suffix}"
    with build_module(ScaledColumn, [(X,)], tp_degree=2, checkpoint_path=str(path)) as module:
        validate_accuracy(module, [(X,)], cpu_callable=lambda x: x @ full_weight(path).T)
    assert list(load_checkpoint(path)) == ["weight"]


@pytest.mark.parametrize(("mark", "placement"), [("1", Shard(0)), ("2", StridedShard(0, 2))])
def test_marks_of_neuronx_distributed(tmp_path: Path, mark: str, placement: Placement) -> None:
    path = tmp_path / "full.pt"
    with build_module(Column, [(X,)], {"mark": mark}, 2, checkpoint_path=str(path)) as module:
        blocks = torch.cat(placement.split(full_weight(path), 2))
        validate_accuracy(module, [(X,)], expected_outputs=[X @ blocks.T])
        if mark == "2":
            with pytest.raises(AssertionError, match="elements differ"):
                validate_accuracy(module, [(X,)], expected_outputs=[X @ full_weight(path).T])


def test_checkpoint_is_seeded_and_reused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    for path in (first, second):
        build_module(Row, [(X,)], tp_degree=1, checkpoint_path=str(path), dry_run=True)
    assert torch.equal(full_weight(first), full_weight(second))
    torch.save({"weight": torch.eye(8)}, first)
    with build_module(Row, [(X,)], tp_degree=2, checkpoint_path=str(first)) as module:
        validate_accuracy(module, [(X,)], expected_outputs=[X])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_tied_parameters(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tied.{suffix}"
    with build_module(Tied, [(X,)], checkpoint_path=str(path)) as module:
        weight = load_checkpoint(path)["up.weight"]
        validate_accuracy(module, [(X,)], cpu_callable=lambda x: x @ weight.T @ weight.T)


def test_functions_and_tuples_of_outputs() -> None:
    with build_function(two_outputs, [(X,)], tp_degree=2) as function:
        validate_accuracy(function, [(X,)], expected_outputs=[(X + 1, X * 2)])
        with pytest.raises(AssertionError, match=r"output 1: 4\d of 48 elements"):
            validate_accuracy(function, [(X,)], expected_outputs=[(X + 1, X * 3)])


def refuses(text: str, *arguments: object, **options: object) -> None:
    """build_module says one sentence, and shows no place in tp-harness."""
    with pytest.raises(UsageError, match=text) as caught:
        build_module(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "kwargs", "text"),
    [
        (Odd, {}, r"not clear how table is placed: full \[8, 8\], local \[4, 4\] on 2 ranks"),
        (Row, {"misplan": True}, r"makes shards \[4, 8\] of weight \[8, 8\], but the module holds \[8, 4\]"),
        (Row, {"dim": 5}, r"weight cannot be placed as Shard\(dim=5, unit=1\): a tensor of shape \(8, 8\) has no dim"),
    ],
    ids=["ambiguous", "plan_of_another_shape", "plan_of_no_dimension"],
)
def test_unplaceable_parameter_is_named(tmp_path: Path, module: type, kwargs: dict[str, bool], text: str) -> None:
    refuses(text, module, [(X,)], kwargs, 2, checkpoint_path=str(tmp_path / "c.pt"))


def test_checkpoint_of_another_module(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"bias": torch.zeros(3)}, path)
    refuses(r"lacks \['weight'\] and has \['bias'\]", Row, [(X,)], tp_degree=2, checkpoint_path=str(path))


def test_a_degree_that_does_not_divide_is_said() -> None:
    text = r"^dimension 0 of weight \[64, 8\] does not divide over 3 ranks, of which each holds \[21, 8\]: choose ano"
    refuses(text, Column, [(X,)], tp_degree=3)


def test_a_checkpoint_that_is_none_is_said(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pt"
    garbage.write_text("no tensors")
    refuses("it is not what torch.save writes since", Row, [(X,)], tp_degree=2, checkpoint_path=str(garbage))
    refuses("is a folder; a file of tensors is needed", Row, [(X,)], tp_degree=2, checkpoint_path=str(tmp_path))


def test_pickle_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UsageError, match="cannot read the checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_ranks_that_disagree_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "c.pt")
    with (
        build_module(Row, [(X,)], {"reduce": False}, 2, checkpoint_path=path) as module,
        pytest.raises(ReplicaError, match=r"rank 1 holds .* where rank 0 holds .*output_placement = Shard"),
    ):
        module(X)


def test_failure_in_a_call_ends_all_ranks() -> None:
    before = set(psutil.Process().children(recursive=True))
    module = build_module(RaisesOnRankOne, [(X,)], tp_degree=4)
    assert len(set(psutil.Process().children(recursive=True)) - before) >= 4
    with pytest.raises(ShardedModuleError, match=r"rank 1 of 4 failed: ArithmeticError: no such luck"):
        module(X)
    assert set(psutil.Process().children(recursive=True)) <= before
    why = "were ended: rank 1 of 4 failed: ArithmeticError: no such luck; build it again$"
    with pytest.raises(ShardedModuleError, match=why):
        module(X)


def test_a_closed_module_says_so_and_an_input_that_is_no_tensor_ends_nothing() -> None:
    with build_function(two_outputs, [(X,)], tp_degree=1) as function:
        with pytest.raises(UsageError, match="input 1 of the module is a list; a tensor is needed"):
            function(X, [1.0])
        assert torch.equal(function(X)[0], X + 1)
    with pytest.raises(ShardedModuleError, match="were ended: they were closed; build it again"):
        function(X)


def unlucky(x: torch.Tensor) -> torch.Tensor:
    print("NRT:nrt_allocate_neuron_cores NeuronCore(s) not available - Requested:nc3-nc3 Available:0", flush=True)
    raise RuntimeError("initialization failed")


def test_a_failure_is_told_with_the_remedy_that_its_log_calls_for() -> None:
    module = build_function(unlucky, [(torch.zeros(1),)], tp_degree=1)
    assert module is not None
    with pytest.raises(ShardedModuleError, match=r"initialization failed; rank 0's log: NeuronCore nc3-nc3 is held by"):
        module(torch.zeros(1))


def test_ranks_end_with_the_object() -> None:
    before = set(psutil.Process().children(recursive=True))
    module = build_function(two_outputs, [(X,)], tp_degree=2)
    assert set(psutil.Process().children(recursive=True)) - before
    del module
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"example_inputs": []}, "must not be empty"),
        ({"example_inputs": [(X,), (X,)]}, "exactly one tuple; it has 2"),
        ({"example_inputs": [X]}, "list of tensor tuples"),
        ({"tp_degree": 0}, "tp_degree is 0"),
        ({"tp_degree": 2, "world_size": 4}, "world_size is 4, tp_degree 2"),
        ({"module_cls": Row()}, "module_cls is a module, an instance of Row; a class, or a function"),
        ({"module_cls": 3}, "module_cls is 3; a class, or a function that returns a new module, is needed"),
        ({"module_init_kwargs": [1]}, r"module_init_kwargs is \[1\]; a dict of Row's arguments is needed"),
        ({"module_init_kwargs": {"foo": 1}}, r"Row cannot be called with .*: got an unexpected keyword argument 'foo'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build_module(**({"module_cls": Row, "example_inputs": [(X,)]} | arguments))  # type: ignore[arg-type]


def test_expected_outputs_and_cpu_callable_must_agree() -> None:
    with pytest.raises(AssertionError, match="elements differ"):
        validate_accuracy(lambda x: x, [(X,)], expected_outputs=[X], cpu_callable=lambda x: x + 1)
    validate_accuracy(lambda x: x, [(X,)], expected_outputs=[X], cpu_callable=lambda x: x)
    with pytest.raises(ValueError, match="provide expected_outputs or a cpu_callable"):
        validate_accuracy(lambda x: x, [(X,)])
    with pytest.raises(ValueError, match="2 expected_outputs for 1 inputs"):
        validate_accuracy(lambda x: x, [(X,)], expected_outputs=[X, X])
    with pytest.raises(ValueError, match="cpu_callable is 3; a function or a module is needed"):
        validate_accuracy(lambda x: x, [(X,)], cpu_callable=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"assert_close_kwargs is {'rtoll': 1}; it may hold rtol and atol"):
        validate_accuracy(lambda x: x, [(X,)], expected_outputs=[X], assert_close_kwargs={"rtoll": 1})
