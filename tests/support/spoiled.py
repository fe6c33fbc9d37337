"""What ranks left, spoiled in one way each, with the status and reason that must follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from ladder import Ranks

from tp_harness.judge.gather import RankOutput
from tp_harness.ranks.rank_report import DtypeRun, RankReport, TensorKey
from tp_harness.results.result import Status

Change = Callable[[torch.Tensor], torch.Tensor]


def locked(name: str) -> TensorKey:
    return TensorKey("float32", "locked", name)


def edit(number: int, change: Change, name: str = "output.0") -> Callable[[Ranks], None]:
    """Change one tensor of one rank."""
    return lambda ranks: _edit(ranks[number], change, name)


def all_ranks(change: Change) -> Callable[[Ranks], None]:
    def spoil(ranks: Ranks) -> None:
        for left in ranks.values():
            _edit(left, change, "output.0")

    return spoil


def _edit(left: RankOutput, change: Change, name: str) -> None:
    held = cast("dict[TensorKey, torch.Tensor]", left.tensors)
    held[locked(name)] = change(held[locked(name)])


def edit_report(number: int, change: Callable[[RankReport], RankReport]) -> Callable[[Ranks], None]:
    def spoil(ranks: Ranks) -> None:
        ranks[number] = replace(ranks[number], report=change(ranks[number].report))

    return spoil


def edit_run(number: int, change: Callable[[DtypeRun], DtypeRun]) -> Callable[[Ranks], None]:
    return edit_report(number, lambda report: replace(report, runs={"float32": change(report.runs["float32"])}))


def one_element(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.index_put((torch.tensor(1), torch.tensor(3), torch.tensor(7)), torch.tensor(value))


def one_bit(x: torch.Tensor) -> torch.Tensor:
    bits = x.clone().view(torch.int32)
    bits.view(-1)[1000 % bits.numel()] ^= 1
    return bits.view(torch.float32)


def add_output(ranks: Ranks) -> None:
    for rank, left in list(ranks.items()):
        left.tensors[locked("output.1")] = left.tensors[locked("output.0")]  # type: ignore[index]  # a dict here
        edit_run(rank, lambda run: replace(run, results=(*run.results, "output.1")))(ranks)


def without_bias(run: DtypeRun) -> DtypeRun:
    return replace(run, parameters={name: held for name, held in run.parameters.items() if name != "mlp1_bias"})


def bias_of_another_shape(run: DtypeRun) -> DtypeRun:
    held = run.parameters["mlp1_bias"]
    return replace(run, parameters=run.parameters | {"mlp1_bias": replace(held, shape=(*held.shape, 1))})


SPOILED = {
    "rank-missing": ("mlp", lambda ranks: ranks.pop(5), Status.MISSING, "ranks [5] of 8 left no output"),
    "output-missing": (
        "mlp", lambda ranks: ranks[5].tensors.pop(locked("output.0")), Status.MISSING,
        "rank 5 gave 0 outputs instead of 1",
    ),
    "choice-missing": (
        "mlp", lambda ranks: ranks[5].tensors.pop(locked("chosen")), Status.MISSING,
        "rank 5 left no chosen: a submodule of that name must see every token",
    ),
    "logits-one-bit": (
        "mlp", edit(5, one_bit, "router_logits"), Status.MISMATCH,
        "replicas: router_logits: rank 5 holds ",
    ),
    "other-parameters": (
        "mlp", edit_run(5, without_bias), Status.MISMATCH,
        "reassembly: of ranks 0 and 5 only one holds mlp1_bias",
    ),
    "output-added": ("mlp", add_output, Status.MISSING, "rank 0 gave 2 outputs instead of 1"),
    "flattened": (
        "mlp", edit(5, lambda x: x.flatten(0, 1)), Status.SHAPE,
        "output.0 of rank 5 has shape [48, 96] instead of [2, 24, 96] (flattened tokens)",
    ),
    "batch-and-sequence": (
        "mlp", edit(5, lambda x: x.transpose(0, 1)), Status.SHAPE,
        "has shape [24, 2, 96] instead of [2, 24, 96] (batch and sequence swapped)",
    ),
    "batch-dropped": ("mlp", edit(0, lambda x: x[0]), Status.SHAPE, "[24, 96] instead of [2, 24, 96] (a batch dim"),
    "one-shard": (
        "transformer", edit(5, lambda x: x[..., :68]), Status.SHAPE, "68] instead of [2, 24, 544] (one shard as the who"
    ),
    "shards": (
        "transformer", all_ranks(lambda x: x[..., :68]), Status.SHAPE,
        "[2, 24, 68] instead of [2, 24, 544] (one shard as the whole); output=Shard(2) of its Case would fit",
    ),
    "whole-as-shard": (
        "unembedding", edit(5, lambda x: x.repeat(1, 1, 8)), Status.SHAPE, "shape [2, 24, 544] instead of [2, 24, 68]"
    ),
    "dtype": (
        "mlp", edit(5, lambda x: x.double()), Status.SHAPE, "rank 5 is torch.float64, where torch.float32 was run"
    ),
    "nan": ("mlp", edit(5, one_element(math.nan)), Status.NONFINITE, "output.0 of rank 5 has nan at [1, 3, 7]"),
    "inf": ("unembedding", edit(7, one_element(-math.inf)), Status.NONFINITE, "of rank 7 has -inf at [1, 3, 7]"),
    "one-bit": ("mlp", edit(5, one_bit), Status.MISMATCH, "replicas: output.0: rank 5 holds "),
    "other-job": (
        "mlp", edit_report(3, lambda report: replace(report, config_hash="0")), Status.MISMATCH,
        "config: ranks [3] read another job",
    ),
    "one-schedule": (
        "mlp", edit_run(6, lambda run: replace(run, collectives=run.collectives * 2)), Status.MISMATCH,
        "schedule: rank 6 against rank 0: 2 collectives instead of 1",
    ),
    "held-shape": (
        "mlp", edit_run(5, bias_of_another_shape),
        Status.MISMATCH, "reassembly: rank 5 does not hold its shard of mlp1_bias (Shard(dim=1, unit=2))",
    ),
    "one-element": ("unembedding", edit(6, one_element(9.0)), Status.MISMATCH, "worst token of output.0 is "),
}  # fmt: skip
