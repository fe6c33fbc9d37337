"""What one would write without this tool: one torchrun per component and degree, one dtype, one allclose.

    torchrun --nproc-per-node 8 tests/bench/plain.py --component mlp --model gpt-oss-20b --weights w.safetensors

Every rank reads its shards from the file, rank 0 also runs the reference. It is the tool's own model code, so the
comparison in sweep.py is about the way of running, not about the model.
"""

import argparse
import sys

import torch
import torch.distributed as dist
from safetensors import safe_open

from tp_harness.case.placed import input_placements
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig


def main() -> int:
    """Be one rank; 0 if allclose."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--component", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seq", type=int, required=True)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    neuron = NeuronConfig(seq_len=arguments.seq, torch_dtype="float32", tp_degree=size)
    case = component_case(arguments.component, InferenceConfig.of(PRESETS[arguments.model], neuron), 0)
    calls = case.given(torch.Generator().manual_seed(0))
    placed = input_placements(case, calls.tensors)
    with torch.device("meta"):
        module, reference = case.sharded(), case.reference()
    with safe_open(arguments.weights, framework="pt") as file, torch.inference_mode():
        full = {name: file.get_tensor(case.prefix + name) for name in reference.state_dict()}
        shards = {name: case.plan[name].shard(full[name], rank, size) for name in module.state_dict()}
        module.load_state_dict(shards, assign=True)
        local = [placed[name].shard(x, rank, size) for name, x in calls.tensors.items()]
        output = module(*local)
        close = True
        if rank == 0:
            reference.load_state_dict(full, assign=True)
            expected = case.in_dtype(reference, torch.float32)(*calls.tensors.values())
            results, wanted = (x if isinstance(x, tuple) else (x,) for x in (output, expected))
            shards_wanted = [p.shard(w, 0, size) for p, w in zip(case.outputs, wanted, strict=True)]
            close = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(results, shards_wanted, strict=True))
    dist.barrier()  # a rank that leaves before the others are connected fails them
    dist.destroy_process_group()
    return 0 if close else 1


if __name__ == "__main__":
    sys.exit(main())
