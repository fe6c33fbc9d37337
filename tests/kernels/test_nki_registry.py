"""The registry: status words, shapes per rank, and calls on torch tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tp_harness.kernels import registry, run
from tp_harness.kernels.call import KernelArgumentError, to_numpy, to_torch
from tp_harness.kernels.nki_interpreter import NkiValidationError

from tp_harness.config.divisibility import TRN1_DEGREES
from tp_harness.errors import UsageError
from tp_harness.models.gpt_oss.config import PRESETS


def test_the_page_and_the_table_have_the_status_of_every_kernel() -> None:
    text = (Path(registry.__file__).parent / "README.md").read_text()
    [status] = {item.status for item in registry.KERNELS}
    assert status in text
    for item in registry.KERNELS:
        assert f"{item.kernel.__module__.rsplit('.', 1)[1]}.py" in text


def test_every_kernel_has_limits_and_a_peak() -> None:
    assert all(item.limits and item.sbuf_peak_bytes > 51 for item in registry.KERNELS)


@pytest.mark.parametrize("model", ["tiny", "gpt-oss-20b"])
@pytest.mark.parametrize("tp", TRN1_DEGREES)
def test_every_kernel_has_shapes_at_every_degree(model: str, tp: int) -> None:
    for item in registry.KERNELS:
        for sizes in registry.shapes(item.name, PRESETS[model], tp, tokens=128).values():
            symbols = {symbol for dims in item.dims.values() for symbol in dims}
            assert set(sizes) == symbols
            assert all(size >= 1 for size in sizes.values())


def test_per_rank_sizes_of_gpt_oss_20b() -> None:
    table = [(tp, PRESETS["gpt-oss-20b"].on_rank(tp)) for tp in TRN1_DEGREES]
    assert [(tp, r.q_heads, r.kv_heads, r.intermediate, r.vocab) for tp, r in table] == [
        (1, 64, 8, 2880, 201_088),
        (2, 32, 4, 1440, 100_544),
        (8, 8, 1, 360, 25_136),
        (32, 2, 1, 90, 6284),
    ]
    assert registry.shapes("linear", PRESETS["gpt-oss-20b"], 8, 4)["qkv"] == {"T": 4, "K": 2880, "N": 640}
    with pytest.raises(UsageError, match="query heads 64 is not divisible by tp_degree 3"):
        PRESETS["tiny"].on_rank(3)


def test_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"unknown kernel 'rmsnrm'; did you mean 'rmsnorm'\? Choices: rmsnorm, rope"):
        run("rmsnrm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_run_takes_and_returns_torch_tensors(dtype: torch.dtype) -> None:
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = run("rmsnorm", x.T.contiguous().T, torch.ones(96, dtype=dtype), eps=1e-5)
    assert y.dtype is dtype and y.shape == x.shape
    torch.testing.assert_close(y, registry.spec("rmsnorm").twin(x, torch.ones(96), 1e-5))


def test_run_takes_parameters_that_require_grad() -> None:
    scale = torch.nn.Parameter(torch.ones(96))
    assert not run("rmsnorm", torch.ones(2, 96), scale, eps=1e-5).requires_grad


def test_experts_come_back_as_int64() -> None:
    experts, *_ = run("router", torch.ones(2, 96), torch.ones(8, 96), torch.zeros(8), top_k=4)
    assert experts.dtype is torch.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rmsnorm", torch.ones(2, 3, 96), torch.ones(96)), r"x has shape \(2, 3, 96\), expected \(T, H\)"),
        (
            ("rmsnorm", torch.ones(2, 96), torch.ones(95)),
            r"scale has shape \(95,\), expected \(H\): H is 95, but 96 in x",
        ),
        (("rope", torch.ones(2, 1, 8), torch.ones(2, 8), torch.ones(2, 8)), "rope: D is 8, D/2 is 8"),
    ],
)
def test_wrong_shapes_name_the_tensor_and_the_dimension(arguments, message) -> None:
    options = {"eps": 1e-5} if arguments[0] == "rmsnorm" else {}
    with pytest.raises(KernelArgumentError, match=message):
        run(*arguments, **options)


def test_a_size_beyond_the_limit_is_refused_at_the_kernels_own_line() -> None:
    with pytest.raises(NkiValidationError) as caught:
        run("rmsnorm", torch.ones(129, 10_000), torch.ones(10_000), eps=1e-5)
    assert caught.value.rule == "sbuf-capacity"
    assert caught.value.location.path.endswith("rmsnorm.py")
    assert "bytes per partition live, 196,608 exist" in str(caught.value)


def test_float64_is_refused() -> None:
    with pytest.raises(KernelArgumentError, match=r"rmsnorm: x is torch\.float64, kernels take float32"):
        run("rmsnorm", torch.ones(2, 96).double(), torch.ones(96), eps=1e-5)


def test_missing_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'eps'"):
        run("rmsnorm", torch.ones(2, 96), torch.ones(96))


def test_bfloat16_survives_the_way_to_numpy_and_back() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(to_torch(to_numpy(x)), x)
