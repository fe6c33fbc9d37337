"""How much SBUF and PSUM is live while a kernel runs, and which instructions it issued.

A tile is live while the kernel's Python code can still reach it. A compiler frees a tile after its last
use, so the peak is an upper bound of that; fragmentation and alignment are not modelled. A PSUM tile takes
whole banks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tp_harness.kernels.nki_interpreter.targets import PSUM_BANK_BYTES


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one run of a kernel took."""

    sbuf_peak_bytes: int
    psum_peak_banks: int
    instructions: dict[str, int]

    @property
    def num_instructions(self) -> int:
        """Return the number of instructions issued."""
        return sum(self.instructions.values())


class Accounting:
    """Running totals, in bytes (SBUF) and banks (PSUM) of one partition."""

    def __init__(self) -> None:
        """Start with empty memories."""
        self.live = {"sbuf": 0, "psum": 0}
        self.peak = {"sbuf": 0, "psum": 0}
        self.instructions: Counter[str] = Counter()

    def take(self, region: str, partition_bytes: int) -> int:
        """Add a tile; return what is live in `region` now, in its unit."""
        self.live[region] += self.units(region, partition_bytes)
        self.peak[region] = max(self.peak[region], self.live[region])
        return self.live[region]

    def give_back(self, region: str, partition_bytes: int) -> None:
        """Remove a tile that nothing refers to any more."""
        self.live[region] -= self.units(region, partition_bytes)

    @staticmethod
    def units(region: str, partition_bytes: int) -> int:
        """Return bytes for SBUF and whole banks for PSUM."""
        return partition_bytes if region == "sbuf" else -(-partition_bytes // PSUM_BANK_BYTES)

    def usage(self) -> Usage:
        """Return the totals as a value."""
        return Usage(
            sbuf_peak_bytes=self.peak["sbuf"],
            psum_peak_banks=self.peak["psum"],
            instructions=dict(sorted(self.instructions.items())),
        )
