"""The kernels on a NeuronCore. Nothing here has been run: no machine of this project has one."""

from __future__ import annotations

import pytest
import torch
from tp_harness.kernels import compat, registry
from tp_harness.kernels.call import bind
from tp_harness.kernels.checks import accuracy
from tp_harness.kernels.checks.accuracy import AccuracyCase, oracle, relative_error

needs_device = pytest.mark.skipif(
    compat.TOOLCHAIN.mode != "device",
    reason="needs AWS's nki wheel, a NeuronCore and TP_HARNESS_NKI=device; never run on Trn1",
)
# No error bound is documented for Scalar Engine's functions; this is where a first run would start.
DEVICE_LIMIT = 1e-3


@needs_device
@pytest.mark.parametrize("case", accuracy.tiny_cases(torch.float32), ids=lambda case: case.id)
def test_on_device(case: AccuracyCase) -> None:
    torch_xla = pytest.importorskip("torch_xla")
    item = registry.spec(case.kernel)
    arguments = bind(item, **case.arguments())
    device = torch_xla.device()
    moved = {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    result = item.kernel(**moved)
    outputs = tuple(tensor.cpu() for tensor in (result if isinstance(result, tuple) else (result,)))
    for actual, expected in zip(outputs, oracle(item, arguments, outputs), strict=True):
        assert relative_error(actual, expected)[0] <= DEVICE_LIMIT
