"""`make packing`: a mix of 1-, 2-, 8- and 32-core tests on one pool, their total time against the ideal packing.

The tests sleep, so the figures are of waiting and packing and not of this machine's load. Reads the run's own run.json:
no two tests may have shared a core and every block must be aligned, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tp_harness.pytest_plugin.pool_usage import core_seconds, held, ideal, occupations, shared, span
from tp_harness.pytest_plugin.results import TestResult
from tp_harness.results.from_json import from_json

COUNTS = {1: 40, 2: 16, 8: 10, 32: 4}
SECONDS = (0.5, 3.0)


def main() -> int:
    """Run the mix and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="of pytest -n")
    parser.add_argument("--cores", type=int, default=32, help="of the virtual pool")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the seconds of the tests")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-harness-packing-") as folder:
        (Path(folder) / "test_mix.py").write_text(suite(arguments.seed, arguments.cores))
        results = run(Path(folder), arguments.workers, arguments.cores)
    return report(results, arguments.workers, arguments.cores)


def suite(seed: int, cores: int) -> str:
    """The text of the tests, in an order drawn from the seed."""
    draw = random.Random(seed)
    degrees = [degree for degree, count in COUNTS.items() for _ in range(count) if degree <= cores]
    draw.shuffle(degrees)
    tests = [
        f"@pytest.mark.tp({degree})\ndef test_{i:02d}():\n    time.sleep({draw.uniform(*SECONDS):.2f})\n"
        for i, degree in enumerate(degrees)
    ]
    return "\n\n".join(["import time\n\nimport pytest\n", *tests])


def run(folder: Path, workers: int, cores: int) -> list[TestResult]:
    """The results of `pytest -n workers` on the tests in the folder."""
    options = ["-q", "-n", str(workers), "--neuron-cores", str(cores), "--neuron-locks", str(folder / "locks")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    print(" ".join(["pytest", *options[:-1], "..."]), flush=True)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    [path] = folder.glob("artifacts/*/run.json")
    return occupations([from_json(TestResult, value) for value in json.loads(path.read_text())["results"]])


def report(results: list[TestResult], workers: int, cores: int) -> int:
    """Print the figures; 1 where a core was shared or a block not aligned."""
    print("\ntests  cores each  seconds held  longest wait")
    for degree in sorted({result.tp for result in results}):
        tests = [result for result in results if result.tp == degree]
        wait = max(result.waited_s for result in tests)
        print(f"{len(tests):5d}  {degree:10d}  {sum(map(held, tests)):12.1f}  {wait:12.1f}")
    skewed = [result for result in results if result.first_core % result.tp or max(result.cores) >= cores]
    pairs = shared(results)
    bound = ideal(results, pool=cores, workers=workers)
    print(f"\npairs of tests that shared a core: {len(pairs)} of {len(results) * (len(results) - 1) // 2}")
    print(f"blocks not at a multiple of their size: {len(skewed)} of {len(results)}")
    print(f"core-seconds: {core_seconds(results):.1f}, over {cores} cores {core_seconds(results) / cores:.1f} s")
    print(f"total {span(results):.1f} s, ideal packing at least {bound:.1f} s, ratio {span(results) / bound:.2f}")
    return 1 if pairs or skewed else 0


if __name__ == "__main__":
    sys.exit(main())
