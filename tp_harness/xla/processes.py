"""Where ranks meet that are processes, one per device. No torch_xla."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from ..result import to_json


class ProcessMeeting:
    """For the ranks of a process group of CPU tensors: each brings something and takes away what all have brought.

    What is brought is made of JSON values or of result types, which arrive as JSON; nothing is pickled.

    There is no turn-taking, unlike among threads: loading a program with collectives blocks on a NeuronCore until
    every rank loads it, so that a rank that waited for another's turn to end would wait for ever. That the program is
    compiled once is the doing of Neuron's compile cache, which is keyed by the program and locked while one compiles.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.turn: AbstractContextManager[None] = nullcontext()
        self._group = group

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What every rank brought, by rank."""
        text = json.dumps(to_json(value)).encode()
        size = dist.get_world_size(self._group)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(text)]), group=self._group)
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(size)]
        dist.all_gather(texts, padded, group=self._group)
        return [json.loads(gathered.numpy().tobytes()) for gathered in texts]
