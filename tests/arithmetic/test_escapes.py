"""Each way out of exact arithmetic: a wrong program never looks proved by it, and ordinary code is not accused.

Each way is a function of `x` that the right and the wrong program share. The wrong one has `x` at half its size: behind
a way out that gives constants, the two would look alike.
"""

from __future__ import annotations

import copy
import ctypes
import io
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exact_runs import inputs, proved, run
from torch import nn

Way = Callable[[torch.Tensor], torch.Tensor]


def positive(a: np.ndarray) -> np.ndarray:
    """A function that makes ordinary numbers of nan."""
    return np.where(a > 0, a, 0.0).astype(np.float32)


def ends(way: Way) -> tuple[bool, bool, list[str]]:
    """Whether the right and the wrong program look proved, and what was seen; the result depends on another input."""
    given = inputs((3, 4), (1,))
    right = run(lambda x, z: z * way(x * 1), *given)
    again = run(lambda x, z: z * way(x + x - x), *given)
    wrong = run(lambda x, z: z * way(x / 2), *given)
    return proved(right, again), proved(right, wrong), right.seen.escapes


def written_through_numpy(x: torch.Tensor) -> torch.Tensor:
    array = np.zeros((3, 4), dtype=np.float32)
    buffer = torch.from_numpy(array)
    buffer.copy_(x)
    array[:] = positive(array)
    return buffer + 1


def written_by_address(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    ctypes.memset(y.data_ptr(), 0, 4)
    return y + 1


def buffer_with_array(x: torch.Tensor) -> torch.Tensor:
    """The array is made while the buffer is constant."""
    buffer = torch.zeros(3, 4)
    array = buffer.numpy()
    buffer += x
    return torch.from_numpy(positive(array)) + 1


def filled_by_ctypes(x: torch.Tensor) -> torch.Tensor:
    """An extension's way: fresh memory, filled by address."""
    out = torch.empty(3, 4)
    ctypes.memset(out.data_ptr(), 0, out.nbytes)
    return out + 1


def through_file(x: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(x, file)
    return torch.load(io.BytesIO(file.getvalue())).nan_to_num() + 1


def in_a_thread(x: torch.Tensor) -> torch.Tensor:
    out: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: out.append(torch.where(x > 0, x, 0.0)))
    thread.start()
    thread.join()
    return out[0] + 1


def in_a_fork(x: torch.Tensor) -> torch.Tensor:
    """A real one computes in the child and sends the result back; here the child ends at once."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return torch.ones(3, 4) + 1


def in_a_process(x: torch.Tensor) -> torch.Tensor:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return torch.ones(3, 4) + 1


def unfinished(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(3, 4)
    out[:2] = x[:2]
    return out


def grown(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2).resize_(3, 4) + 1


def resized(x: torch.Tensor) -> torch.Tensor:
    return (x * 1).resize_(2, 2)


def set_to(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y.set_(torch.ones(3, 4))
    return y + 1


@torch.library.custom_op("tp_harness_tests::positive", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    """An extension's operation, computed by NumPy."""
    return torch.from_numpy(positive(x.numpy()).astype(x.numpy().dtype)).clone()


@torch.library.custom_op("tp_harness_tests::double_", mutates_args=("x",))
def opaque_in_place(x: torch.Tensor) -> None:
    """An extension's operation that writes."""
    x.copy_(torch.from_numpy(2 * positive(x.numpy())))


LIBRARY = torch.library.Library("tp_harness_tests", "FRAGMENT")
LIBRARY.define("bare(Tensor x) -> Tensor")
LIBRARY.impl("bare", lambda x: torch.from_numpy(positive(x.detach().numpy())).clone(), "CPU")


def of_a_library(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.tp_harness_tests.bare(x)


def doubled(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    opaque_in_place(y)
    return y


WAYS: dict[str, Way] = {
    "numpy": lambda x: torch.from_numpy(positive(x.numpy())) + 1,
    "asarray": lambda x: torch.tensor(positive(np.asarray(x))),
    "ufunc": lambda x: torch.as_tensor(np.maximum(positive(x.__array__()), 0)),
    "detached-numpy": lambda x: torch.asarray(positive(x.detach().cpu().numpy())),
    "array-of-a-buffer": buffer_with_array,
    "written-through-numpy": written_through_numpy,
    "written-by-address": written_by_address,
    "filled-by-address": filled_by_ctypes,
    "item": lambda x: torch.full((2,), max(x[0, 0].item(), 0)),
    "float": lambda x: torch.ones(2) * max(float(x[0, 0]), 0),
    "int": lambda x: torch.ones(2) * int(x[0, 0] * 100),
    "tolist": lambda x: torch.tensor([max(each, 0) for each in x[0].tolist()]),
    "format": lambda x: torch.ones(2) * len(f"{x}"),
    "dlpack": lambda x: torch.where(torch.from_dlpack(x) > 0, 1.0, 0.0),
    "dlpack-capsule": lambda x: torch.where(torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)) > 0, 1.0, 0.0),
    "numpy-dlpack": lambda x: torch.from_numpy(positive(np.from_dlpack(x))),
    "frombuffer": lambda x: torch.frombuffer(bytearray(positive(x.numpy()).tobytes()), dtype=torch.float32),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).nan_to_num() + 1,
    "deepcopy": lambda x: copy.deepcopy(x).nan_to_num() + 1,
    "file": through_file,
    "storage": lambda x: torch.tensor(list(x.untyped_storage())[:4], dtype=torch.float32),
    "typed-storage": lambda x: torch.tensor(x.storage().tolist()).nan_to_num(),
    "shared-memory": lambda x: (x * 1).share_memory_().nan_to_num() + 1,
    "custom-op": lambda x: opaque(x) + 1,
    "custom-op-in-place": doubled,
    "library-op": of_a_library,
    "thread": in_a_thread,
    "fork": in_a_fork,
    "process": in_a_process,
    "bits": lambda x: (x.view(torch.int32) & 0x7FFFFFFF).view(torch.float32) + 1,
    "bits-of-half": lambda x: (x.bfloat16().view(torch.int16) >> 15).float() + 1,
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(3, 2, 2)).exp()),
    "to-int": lambda x: (x * 100).to(torch.int64).float(),
    "copied-into-int": lambda x: torch.zeros(3, 4, dtype=torch.int32).copy_(x * 100).float(),
    "random": lambda x: x + torch.rand(3, 4) * 0,
    "dropout": lambda x: nn.functional.dropout(x, 0.5, training=True),
    "in-place-random": lambda x: (x * 1).uniform_(),
    "uninitialised": unfinished,
    "grown": grown,
    "resized": resized,
    "set": set_to,
    "without-a-rule": lambda x: torch.linalg.inv(x[:3, :3]),
    "equal": lambda x: torch.ones(2) * float(torch.equal(x, x.abs())),
}


@pytest.mark.parametrize("name", WAYS)
def test_nothing_is_proved_behind_a_way_out(name: str) -> None:
    right, wrong, escapes = ends(WAYS[name])
    assert not wrong and not right
    assert escapes or name == "uninitialised"
