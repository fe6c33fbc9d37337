"""gpt-oss as it is served, as a Case: prompts of different length, a chunk, decode steps, and requests that follow.

Each call has one of two widths (a bucket, or one token): rows that have fewer tokens are padded, on the right in even
rows and on the left in odd ones. Caches begin with random numbers in empty slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...case.calls import Call, Output
from ...parallel.placements import Shard
from ...reference import decoding
from ...reference.kv_cache import EMPTY, KVCache
from ...results.result import Collective
from .config import DECODE_STEPS, ROWS, InferenceConfig
from .inputs import tokens
from .modules import NeuronGPTOSSTransformer
from .modules.kv_cache import cache_placements
from .schedule import whole_model

Reuse = tuple[tuple[int, ...], tuple[int, ...]]  # rows of the earlier requests, and how many of their tokens are shared


@dataclass(frozen=True, kw_only=True)
class Step:
    """A call: `begin` is each row's first new position, `counts` how many there are, of `width` at most.

    The caches are those that the call `after` left, "" for empty ones.
    """

    begin: tuple[int, ...]
    counts: tuple[int, ...]
    width: int
    after: str = ""
    reuse: Reuse | None = None

    @property
    def end(self) -> tuple[int, ...]:
        """Each row's next position."""
        return tuple(map(sum, zip(self.begin, self.counts, strict=True)))

    def positions(self) -> torch.Tensor:
        """(rows, width) int64."""
        at = torch.full((len(self.begin), self.width), EMPTY)
        for row, (begin, count) in enumerate(zip(self.begin, self.counts, strict=True)):
            first = (self.width - count) * (row % 2)
            at[row, first : first + count] = torch.arange(begin, begin + count)
        return at


def decode_fields(config: InferenceConfig) -> dict[str, Any]:
    """The fields of the Case, but for those that all Cases of a config have."""
    config = _with_rows(config)
    layers, steps = config.num_hidden_layers, dict(_steps(config))
    caches = {f"*.{name}": at for name, at in cache_placements(config).items() if name != "positions"}
    return {
        "reference": lambda: decoding.Transformer(config),
        "sharded": lambda: NeuronGPTOSSTransformer(config),
        "calls": lambda generator: _calls(config, steps, generator),
        "plan": NeuronGPTOSSTransformer.plan(config),
        "taps": _taps(config, steps["prefill"].width),
        "output": {f"past.{name}": at for name, at in caches.items()},
        "input_placements": {f"2.{name}": at for name, at in caches.items()},
        "collectives": partial(_collectives, config, steps),
        "routing": tuple(f"block.{i}.mlp" for i in range(layers)),
        "depth": layers,
    }


def _with_rows(config: InferenceConfig) -> InferenceConfig:
    run = config.neuron_config
    return replace(config, neuron_config=replace(run, batch_size=max(ROWS, run.batch_size)))


def _steps(config: InferenceConfig) -> Iterator[tuple[str, Step]]:
    """The calls by name; the caches have a slot for each token of the configured sequence."""
    rows, length = config.neuron_config.batch_size, config.neuron_config.seq_len
    bucket = max(1, length // 3)
    part, most = max(1, bucket // 2), bucket * 2 <= length

    def each(*counts: int) -> tuple[int, ...]:
        return tuple(counts[row % len(counts)] for row in range(rows))

    prefill = last = Step(begin=(0,) * rows, counts=each(bucket, part, 1), width=bucket)
    yield "prefill", prefill
    name = "prefill"
    if most:
        last = Step(begin=last.end, counts=each(bucket, max(1, bucket - 1), part), width=bucket, after=name)
        name = "chunk"
        yield name, last
        for number in range(min(DECODE_STEPS, length - 2 * bucket)):
            counts = each(1, int(number < 4), 1)  # a row that ended is padding
            last = Step(begin=last.end, counts=counts, width=1, after=name)
            name = f"decode.{number}"
            yield name, last
    yield from _further(prefill, name, most)


def _further(prefill: Step, last: str, has_room: bool) -> Iterator[tuple[str, Step]]:
    """Requests that follow: some share all but the last token of row 0's prompt, and some nothing."""
    rows, bucket = len(prefill.begin), prefill.width
    shared = tuple(bucket - 1 if row % 3 < 2 else 0 for row in range(rows))
    source = tuple(0 if row % 3 < 2 else row - 1 for row in range(rows))
    counts = tuple((max(1, bucket // 2), bucket, bucket)[row % 3] for row in range(rows))
    follow = Step(begin=shared, counts=counts, width=bucket, after="prefill", reuse=(source, shared))
    yield "reuse", follow
    if has_room:
        yield "reuse.decode", Step(begin=follow.end, counts=(1,) * rows, width=1, after="reuse")
    none, others = (0,) * rows, tuple(reversed(range(rows)))
    yield "restart", replace(prefill, after=last, reuse=(others, none))


def _calls(config: InferenceConfig, steps: dict[str, Step], generator: torch.Generator) -> dict[str, Call]:
    run = config.neuron_config
    caches = decoding.empty_caches(config, run.batch_size, run.seq_len, torch.float32)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return 3 * torch.randn(like.shape, generator=generator)

    stale = tuple(KVCache(noise(cache.key), noise(cache.value), cache.positions) for cache in caches)

    def call(step: Step) -> Call:
        past = Output(step.after, "past") if step.after else stale
        reuse = tuple(map(torch.tensor, step.reuse)) if step.reuse else None
        return Call(tokens(config, generator, step.width), step.positions(), past, reuse)

    return {name: call(step) for name, step in steps.items()}


def _taps(config: InferenceConfig, width: int) -> dict[str, Any]:
    """Those of the transformer, but for hidden states that are cut along the sequence in the calls of that width."""
    bucket = replace(config, neuron_config=replace(config.neuron_config, seq_len=width))
    return {name: at for name, at in NeuronGPTOSSTransformer.taps(bucket).items() if at != Shard(1)}


def _collectives(config: InferenceConfig, steps: dict[str, Step], ranks: int) -> tuple[Collective, ...]:
    return tuple(call for step in steps.values() for call in whole_model(config, ranks, step.width))
