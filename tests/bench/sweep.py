"""`make bench`: this tool against one torchrun per component and degree, measured in one run.

Prints wall seconds and their ratio for the tiny model's whole sweep and for one gpt-oss-20b MLP at four degrees; the
CPU seconds of the latter over the floor (one reference forward per degree, plus one, in each dtype); and the peak sum
of PSS of a gpt-oss-20b block at tp 32. All figures are of this machine, now; only ratios carry over.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from usage import Usage, run

from tp_harness.checkpoint.checkpoint import Checkpoint, write_checkpoint
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import COMPONENTS, component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.prepare.oracle import parameter_specs
from tp_harness.prepare.random_weights import discriminating

DEGREES = (1, 2, 8, 32)
HERE = Path(__file__).parent
SHM = Path("/dev/shm")
LARGE_SEQ = 160


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-plain", action="store_true", help="leave out the torchruns, which take minutes")
    arguments = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="tp-harness-bench-", dir=SHM if SHM.is_dir() else None) as folder:
        work = Path(folder)
        table = Table("job", "tp-harness s", "one torchrun each, s", "ratio", "target", header_style="bold")
        tiny = measured(console, verify_command("tiny", tuple(COMPONENTS), work))
        alike = measured(console, [*verify_command("gpt-oss-20b", ("mlp",), work), "--dtype", "float32"])
        large = measured(console, verify_command("gpt-oss-20b", ("mlp",), work))
        plain_tiny, plain_large = 0.0, 0.0
        if not arguments.skip_plain:
            plain_large = plain_seconds("gpt-oss-20b", ("mlp",), LARGE_SEQ, work, console)
            plain_tiny = plain_seconds("tiny", tuple(COMPONENTS), 40, work, console)
        for job, ours, plain, target in (
            ("tiny, all components, both dtypes", tiny, plain_tiny, 20),
            ("gpt-oss-20b, one MLP, float32 as the torchruns", alike, plain_large, 8),
            ("gpt-oss-20b, one MLP, both dtypes", large, plain_large, 8),
        ):
            ratio = f"{plain / ours.wall:.1f}" if plain else "not run"
            table.add_row(job, f"{ours.wall:.1f}", f"{plain:.1f}" if plain else "-", ratio, f">= {target}")
        console.print(table)
        print_floor(console, large, work)
        print_memory(console, work)


def measured(console: Console, command: list[str]) -> Usage:
    """Run a command and say at once what it took: the table comes minutes later."""
    usage = run(command)
    console.print(f"{' '.join(command[2:])}: {usage.wall:.1f} s", style="dim")
    return usage


def verify_command(model: str, components: tuple[str, ...], work: Path) -> list[str]:
    """The tool's own run: both dtypes, oracle, controls, all four degrees."""
    chosen = [word for name in components for word in ("--component", name)]
    seq = ["--seq", str(LARGE_SEQ)] if model != "tiny" else []
    return [sys.executable, "-m", "tp_harness", "verify", "--model", model, *chosen, *seq, "--out", str(work)]


def plain_seconds(model: str, components: tuple[str, ...], seq: int, work: Path, console: Console) -> float:
    """The sum of all torchruns' wall seconds; writing the weights is not counted."""
    total = 0.0
    for component in components:
        weights = write_weights(model, component, work)
        for tp in DEGREES:
            script = [str(HERE / "plain.py"), "--component", component, "--model", model]
            options = ["--weights", str(weights), "--seq", str(seq)]
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(tp)]
            usage = plain_run([*torchrun, *script, *options], console)
            console.print(f"plain torchrun {model} {component} tp {tp}: {usage.wall:.1f} s", style="dim")
            total += usage.wall
        weights.unlink()
    return total


def plain_run(command: list[str], console: Console) -> Usage:
    """A torchrun of the plain script; 32 ranks that connect to each other fail at times, and are started once more."""
    try:
        return run(command)
    except RuntimeError as error:
        console.print(f"failed, and is run again: {str(error).splitlines()[-1]}", style="dim", markup=False)
        return run(command)


def write_weights(model: str, component: str, work: Path) -> Path:
    """The component's weights as a checkpoint."""
    neuron = NeuronConfig(seq_len=LARGE_SEQ, torch_dtype="float32")
    case = component_case(component, InferenceConfig.of(PRESETS[model], neuron), 0)
    path = work / f"{component}.safetensors"
    write_checkpoint(path, parameter_specs(case), lambda spec: discriminating(spec.name, spec.shape, 0))
    return path


def print_floor(console: Console, ours: Usage, work: Path) -> None:
    """CPU seconds of the 20b MLP run over what its forwards alone cost on one core's reference."""
    weights = write_weights("gpt-oss-20b", "mlp", work)
    forwards = {dtype: reference_cpu_seconds(weights, dtype) for dtype in (torch.float32, torch.bfloat16)}
    floor = (len(DEGREES) + 1) * sum(forwards.values())
    each = ", ".join(f"{str(dtype).removeprefix('torch.')} {seconds:.2f} s" for dtype, seconds in forwards.items())
    console.print(f"CPU of the 20b MLP run: {ours.cpu:.1f} s; one reference forward: {each}; floor {floor:.1f} s")
    console.print(f"CPU over the floor: {ours.cpu / floor:.2f} (target <= 2)")


def reference_cpu_seconds(weights: Path, dtype: torch.dtype) -> float:
    """CPU seconds of one reference forward on one core, the best of three, after one that maps the weights."""
    torch.set_num_threads(1)  # two would wait for each other, and what waits seems to work
    case = component_case("mlp", InferenceConfig.of(PRESETS["gpt-oss-20b"], NeuronConfig(seq_len=LARGE_SEQ)), 0)
    checkpoint = Checkpoint([weights])
    reference = case.make(case.reference)
    state = {name: checkpoint.tensor(case.prefix + name) for name in reference.state_dict()}
    reference.load_state_dict(state, assign=True)
    (x,) = case.inputs(torch.Generator().manual_seed(0))
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            started = time.process_time()
            reference(x.to(dtype))
            seconds.append(time.process_time() - started)
    return min(seconds[1:])


def print_memory(console: Console, work: Path) -> None:
    """Peak sum of PSS over all processes for a 20b block, which is at tp 32."""
    command = [*verify_command("gpt-oss-20b", ("transformer_block",), work), "--tp", "1,2,8,32"]
    usage = run(command, memory=True)
    record = json.loads(max(work.glob("*/run.json"), key=lambda path: path.stat().st_mtime).read_text())
    assert record["exit_code"] == 0
    case = component_case("transformer_block", InferenceConfig.of(PRESETS["gpt-oss-20b"], NeuronConfig()), 0)
    weights = sum(spec.bytes for spec in parameter_specs(case))
    limit = 1.5 * weights + 2**30
    gib = 2.0**30
    console.print(
        f"20b block: peak sum of PSS {usage.peak_pss / gib:.2f} GiB; bf16 weights {weights / gib:.2f} GiB; "
        f"limit 1.5 x weights + 1 GiB = {limit / gib:.2f} GiB"
    )


if __name__ == "__main__":
    main()
