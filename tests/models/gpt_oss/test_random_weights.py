"""Generated weights and inputs: the same in whatever order they are made, and such that mistakes show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tp_harness.reference.gpt_oss import MLPBlock

from tp_harness.case.seeds import generator
from tp_harness.checkpoint.checkpoint import TensorSpec, find_checkpoint, write_checkpoint
from tp_harness.checkpoint.tiled_file import HUGE_BYTES
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.models.gpt_oss.inputs import hidden_states, position_ids, tokens
from tp_harness.parallel.placements import Shard, same_bits
from tp_harness.prepare.oracle import parameter_specs
from tp_harness.prepare.random_weights import (
    INITS,
    Init,
    constant,
    discriminating,
    period,
)

SEEDS = (0, 1, 7)


def config(model: str = "tiny", *, batch: int = 2, seq: int = 40) -> InferenceConfig:
    neuron = NeuronConfig(batch_size=batch, seq_len=seq, torch_dtype="float32")
    return InferenceConfig.of(PRESETS[model], neuron)


def model_specs(model: str) -> tuple[TensorSpec, ...]:
    """Every tensor of the whole model."""
    return parameter_specs(component_case("transformer", config(model), 0))


def filled(name: str, *shape: int, seed: int = 0, init: str = "discriminating") -> torch.Tensor:
    return drawn(INITS[init], name, shape, seed)


def drawn(init: Init, name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    values, size = init(name, shape, seed), math.prod(shape)
    return values.repeat(-(-size // len(values)))[:size].view(shape).float()


def equal_rows(x: torch.Tensor) -> int:
    """How many rows are equal to another row."""
    return len(x) - len(x.unique(dim=0))


def equal_shards(x: torch.Tensor) -> int:
    """How many of the 32 shards along the first dimension are equal to another one."""
    return 32 - len({shard.contiguous().numpy().tobytes() for shard in Shard(0).split(x, 32)})


def test_a_tensor_is_the_same_in_whatever_order_it_is_made(tmp_path: Path) -> None:
    specs = [s for s in model_specs("tiny") if s.name.startswith("block.1")]

    def write(order: Iterable[TensorSpec], path: Path) -> Path:
        write_checkpoint(path, order, lambda s: discriminating(s.name, s.shape, 3))
        return path

    one = find_checkpoint(write(specs, tmp_path / "1.safetensors"))
    torch.manual_seed(99)  # the global generator has no part in it
    two = find_checkpoint(write(specs[::-2], tmp_path / "2.safetensors"))
    assert two.names < one.names
    for spec in specs[::-2]:
        assert same_bits(one.tensor(spec.name), two.tensor(spec.name))
        assert same_bits(one.tensor(spec.name), filled(spec.name, *spec.shape, seed=3).to(spec.dtype))


@pytest.mark.parametrize("seed", SEEDS)
def test_another_seed_or_name_gives_other_values(seed: int) -> None:
    x = discriminating("block.0.attn.qkv.weight", (64, 32), seed)
    assert same_bits(x, discriminating("block.0.attn.qkv.weight", (64, 32), seed))
    for other in (("block.1.attn.qkv.weight", seed), ("block.0.attn.qkv.weight", seed + 1)):
        assert (x == discriminating(other[0], (64, 32), other[1])).float().mean() < 0.05
    first, second = (torch.randn(9, generator=generator(seed, name)) for name in ("a", "b"))
    assert not same_bits(first, second)


@pytest.mark.parametrize("model", ["tiny", "gpt-oss-120b"])
def test_no_two_tensors_of_a_model_share_their_random_numbers(model: str) -> None:
    specs = model_specs(model)
    starts = {generator(0, s.name).initial_seed() for s in specs}
    assert len(starts) == len(specs)  # names are hashed: this is where a collision would show


def test_any_seed_and_draw_that_options_allow_can_be_used() -> None:
    largest = 2**31 - 1 + 2**20
    assert torch.isfinite(discriminating("a.weight", (8, 8), largest)).all()
    assert generator(largest, "a.weight").initial_seed() > 0


@pytest.mark.parametrize("name", ["discriminating", "constant"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3), (2**21 + 5,)], ids=str)
def test_an_init_gives_the_first_values_in_bfloat16(name: str, shape: tuple[int, ...]) -> None:
    values = INITS[name]("a.weight", shape, 0)
    assert (values.dtype, tuple(values.shape)) == (torch.bfloat16, (period(shape),))
    assert period(shape) == math.prod(shape) or period(shape) < math.prod(shape) < 2**22


@pytest.mark.parametrize("model", PRESETS)
def test_a_period_is_whole_huge_pages_that_no_two_rows_begin_alike_in(model: str) -> None:
    for spec in model_specs(model):
        count, columns = period(spec.shape), spec.shape[-1]
        if count < math.prod(spec.shape):
            assert 2 * count % HUGE_BYTES == 0 and columns <= count, spec.name
            rows = math.prod(spec.shape[:-1])
            # row i begins at i * columns of the period: they come back to the start together after this many
            assert math.lcm(count, columns) // columns >= rows, spec.name
            assert math.prod(spec.shape) <= 64 * count, spec.name


@pytest.mark.parametrize("shape", [(2**26,), (2, 2**21), (2880, 4096)], ids=str)
def test_what_would_repeat_a_row_or_a_shard_is_random_throughout(shape: tuple[int, ...]) -> None:
    assert period(shape) == math.prod(shape)


def test_no_two_rows_or_shards_of_a_large_tensor_are_equal() -> None:
    rows, columns = 2**14, 96
    large = filled("unembedding.weight", rows, columns)
    assert large.numel() > period((rows, columns))  # values repeat
    assert (equal_rows(large), equal_shards(large)) == (0, 0)
    whole_rows = large[: rows // 32].repeat(32, 1)  # what a period of a whole number of rows would give
    assert (equal_rows(whole_rows), equal_shards(whole_rows)) == (rows - rows // 32, 31)
    half = filled("unembedding.weight", rows, columns, init="constant")
    assert (equal_rows(half), equal_shards(half)) == (rows - 1, 31)  # why constant is the weak choice


@pytest.mark.parametrize("seed", SEEDS)
def test_no_parameter_has_a_value_that_hides_a_mistake(seed: int) -> None:
    """A norm scale of 1 or a bias of 0 makes leaving it out, or adding it twice, invisible."""
    for spec in model_specs("tiny"):
        x = discriminating(spec.name, spec.shape, seed).float()
        if spec.name.endswith("scale"):
            assert 0.5 <= x.min() < 0.7 and 1.3 < x.max() <= 1.5, spec.name
        elif "bias" in spec.name or spec.name.endswith("sinks"):
            assert x.std() > 0.2 and (x.abs() > 0.05).float().mean() > 0.75, spec.name
        else:
            assert x.min() < 0 < x.max() and x.std() > 0, spec.name
        assert x.unique().numel() > 0.6 * min(x.numel(), 2000) ** 0.9, spec.name


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("model_layer", [0, 1])
def test_gates_and_ups_pass_the_clamp_on_both_sides(seed: int, model_layer: int) -> None:
    shares = clamp_shares(discriminating, seed, model_layer)
    assert shares["gate > 7"] > 0.01
    assert shares["up > 7"] > 0.01
    assert shares["up < -7"] > 0.01
    assert shares["gate < -7"] > 0.01  # the side that is not clamped


def test_the_clamp_would_go_unseen_with_ordinary_weights() -> None:
    def ordinary(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        scale = 3.5 if name.endswith("mlp1_weight") else 1.0
        return discriminating(name, shape, seed) / scale

    assert clamp_shares(ordinary, 0, 0)["gate > 7"] < 0.01


def clamp_shares(init: Init, seed: int, layer: int) -> dict[str, float]:
    """Which shares of the reference MLP's gates and ups lie beyond the clamp of 7."""
    mlp = MLPBlock(config()).float().requires_grad_(False)
    for name, parameter in mlp.named_parameters():
        parameter.data.copy_(drawn(init, f"block.{layer}.mlp.{name}", tuple(parameter.shape), seed))
    seen: list[torch.Tensor] = []
    mlp.gate_up.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    mlp(hidden_states(config(), generator(seed, "inputs")))
    gate, up = torch.cat(seen).unflatten(-1, (-1, 2)).unbind(-1)
    parts = {"gate > 7": gate > 7, "gate < -7": gate < -7, "up > 7": up > 7, "up < -7": up < -7}
    return {name: part.float().mean().item() for name, part in parts.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_hit_both_ends_of_every_vocabulary_shard(seed: int) -> None:
    ids = tokens(config(), generator(seed, "tokens"))
    share = config().vocab_size // 32
    assert (ids.shape, ids.dtype) == ((2, 40), torch.int64)
    wanted = {rank * share for rank in range(32)} | {rank * share + share - 1 for rank in range(32)}
    assert wanted <= set(ids.flatten().tolist())
    assert ids.min() >= 0 and ids.max() < config().vocab_size
    assert ids.flatten().tolist() != sorted(ids.flatten().tolist())


def test_few_tokens_are_all_ends_of_shards() -> None:
    ids = tokens(config(batch=1, seq=24), generator(0, "tokens")).flatten().tolist()
    share = config().vocab_size // 32
    assert len(set(ids)) == 24
    assert all(i % share in (0, share - 1) for i in ids)


@pytest.mark.parametrize("seed", SEEDS)
def test_some_hidden_states_are_so_small_that_epsilon_matters(seed: int) -> None:
    x = hidden_states(config(), generator(seed, "x"))
    mean_square = x.square().mean(dim=-1)
    small = mean_square < 1e-4  # epsilon is 1e-5
    assert (x.shape, x.dtype) == ((2, 40, 96), torch.float32)
    assert 0.03 < small.float().mean() < 0.3
    assert mean_square[~small].min() > 1


def test_positions_are_no_indices_and_lie_within_the_rotary_table() -> None:
    assert position_ids(config(batch=3, seq=5)).tolist() == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [1, 2, 3, 4, 5]]
    assert position_ids(config(batch=99, seq=7)).max() < 2 * 7


def test_constant_is_one_value() -> None:
    assert constant("block.0.mlp.mlp1_bias", (8, 4), 5).unique().tolist() == [0.5]
