"""Whether a run fits into this machine, estimated before any rank starts: memory, and room for the run's folder.

The estimate counts what the system cannot reclaim while it is in use: results of a forward, matrices cast to a wider
dtype, and the ranks' outputs. Weights that are mapped from a disk can be reclaimed and do not count.

Not covered: modules of a user's case, whose size is not known here; a device's own memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint.checkpoint import TensorSpec
from ..config.options import Resolved
from ..errors import UsageError
from ..models import family_of

SHM = Path("/dev/shm")
GIB = 2**30
SMALL_FILES = 64 << 20  # inputs, jobs and small outputs
RANK_BYTES = 40 << 20  # private to a forked rank that has done little; measured 27 MiB
LEAD_BYTES = 200 << 20
SPARE = 1.1  # free bytes of a folder's place over those needed, at least
ORACLE, SINGLE = 8, 4  # bytes of an element in float64 and float32
# Of what a forward computes in: 16-bit products are float32; a number in exact arithmetic has three parts of 8 bytes,
# twice while it is reduced.
WIDTHS = {"exact": 48, "float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}


@dataclass(frozen=True, kw_only=True)
class Free:
    """Free bytes: of memory (None where the system does not say), and in each place for a folder."""

    memory: int | None
    places: dict[Path, int]

    @classmethod
    def here(cls, places: Iterable[Path]) -> Free:
        """The free bytes of this machine, now."""
        return cls(memory=available_memory(), places={place: shutil.disk_usage(place).free for place in places})


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a run needs: in its folder, and the most memory beside it, in the phase that `where` names.

    `at_worst`: in its folder, if no two ranks give the same bits where all should.
    """

    folder: int
    at_worst: int
    memory: int
    where: str


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that new programs can use without swapping, at most what a container's limit leaves; None: not known."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):  # no Linux
        return None
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or "max": no limit
        return free
    return min(free, limit - used)


def memory_need(options: Resolved, *, copied: Callable[[str], int]) -> tuple[int, str]:
    """The most bytes of memory that a run of built-in components takes at once beside its folder, and in which phase.

    `copied` gives the bytes of a component's weights that the ranks of a degree copy together.
    """
    model, tokens, degrees = options.model, (options.batch, options.seq), options.degrees
    family, width = family_of(model), max(_widths(options))
    kept = LEAD_BYTES + sum(options.draws * family.output_bytes(model, name, tokens, 14) for name, _ in options.targets)
    found = [(0, "")]
    for name in dict.fromkeys(name for name, _ in options.targets):
        oracle = family.working_bytes(model, name, tokens, 1, ORACLE)
        found.append((kept + oracle, f"the float64 reference of {name}"))
        baseline = family.working_bytes(model, name, tokens, 1, width)
        judged = 7 * family.output_bytes(model, name, tokens, ORACLE)  # differences, norms, the rolled control
        for tp in degrees:
            ranks = tp * (RANK_BYTES + family.working_bytes(model, name, tokens, tp, width)) + copied(name)
            beside = max(judged, baseline if tp == degrees[0] else 0)  # computed once, beside the first ranks
            found.append((kept + ranks + beside, f"{name} at tp {tp}"))
    return max(found)


def lacks_for_taps(options: Resolved, component: str, tp: int, free: int | None) -> str:
    """Why `free` bytes are too few for all intermediate tensors of a component on `tp` ranks; "" where they suffice.

    A user's Case and an unknown `free` (None) are never refused.
    """
    model, family = options.model, family_of(options.model)
    layers = (options.depth or model.num_hidden_layers) if family.has_all_layers(component) else 1

    def tapped(ranks: int, width: int) -> int:
        return width * layers * family.tapped_numbers(model, options.batch * options.seq, ranks)

    def of_one(ranks: int, width: int) -> int:
        """Bytes that one of `ranks` keeps, with `width` bytes per number."""
        return tapped(ranks, width) + family.working_bytes(model, component, (options.batch, options.seq), ranks, width)

    single = max(_widths(options))
    references, ranks = of_one(1, ORACLE) + of_one(1, single), tp * (RANK_BYTES + of_one(tp, single))
    right = tapped(1, ORACLE)  # in the run's folder, to be put in the places of wrong ones
    needed = LEAD_BYTES + max(references, ranks) + right  # one after the other
    if options.case or free is None or needed <= free:
        return ""
    return f"all tensors need about {_gib(needed)} of memory, and {_gib(free)} are free; try fewer layers or tokens"


def need_of(
    options: Resolved, specs: Iterable[TensorSpec], stored: Callable[[TensorSpec], int], *, copies: int
) -> Need:
    """The bytes that a run needs.

    Args:
        options: of the run.
        specs: the weights of all its targets, with their full shapes and stored dtypes.
        stored: bytes of a weight in the run's folder.
        copies: how many copies of its weights each rank holds beside the mapped file.
    """
    specs = [spec for spec in specs if _has(options, spec.name)]
    folder = SMALL_FILES + sum(map(stored, specs))
    if options.case:
        return Need(folder=folder, at_worst=folder, memory=LEAD_BYTES, where=", ".join(options.case))

    family = family_of(options.model)

    def copied(component: str) -> int:
        layers = options.depth or options.model.num_hidden_layers if family.has_all_layers(component) else 1
        return copies * sum(spec.bytes for spec in specs if family.layer_of(spec.name) < layers)

    tokens = (options.batch, options.seq)
    stored_width = max(2 * SINGLE, sum(_widths(options)))
    outputs = max(family.output_bytes(options.model, name, tokens, stored_width) for name, _ in options.targets)
    memory, where = memory_need(options, copied=copied)
    return Need(
        folder=folder + 2 * outputs, at_worst=folder + max(options.degrees) * outputs, memory=memory, where=where
    )


def _widths(options: Resolved) -> list[int]:
    """Bytes of an element in each dtype of the run."""
    return [WIDTHS.get(dtype, ORACLE) for dtype in options.dtypes]


def _has(options: Resolved, name: str) -> bool:
    """Whether the run loads a weight: one of a layer that the whole model is run with, or of another target's layer."""
    family = family_of(options.model)
    whole = any(family.has_all_layers(component) for component, _ in options.targets)
    depth, layer = (options.depth or options.model.num_hidden_layers) if whole else 0, family.layer_of(name)
    return bool(options.case) or layer < depth or layer in {0, *(layer for _, layer in options.targets)}


def place_for(options: Resolved, need: Callable[[Resolved], Need], free: Free) -> Path:
    """The first place for the run's folder where all of it fits; in shared memory, the folder counts as memory too.

    Raises:
        UsageError: no place has room, or memory is short; the message says the GiB needed and free, and what would fit.
    """
    needed = need(options)
    place = _fitting(needed, free)
    if place:
        return place
    advice = next((text for text, other in _smaller(options) if _fitting(need(other), free)), _LAST_ADVICE)
    if free.memory is not None and needed.memory > free.memory:
        raise UsageError(
            f"{needed.where} needs about {_gib(needed.memory)} of memory, and {_gib(free.memory)} are free; {advice}."
        )
    has = " and ".join(f"{place} has {_gib(room)}" for place, room in free.places.items())
    raise UsageError(
        f"the run's weights and outputs need {_gib(needed.folder)}, but {has} free; {advice}, or another folder with "
        "TMPDIR."
    )


_LAST_ADVICE = "choose other components with --component, or fewer --draws"


def _smaller(options: Resolved) -> Iterator[tuple[str, Resolved]]:
    """Smaller runs, the least reduced first, each with the options that ask for it."""
    if options.case:
        return
    all_layers = options.depth or options.model.num_hidden_layers
    is_whole = family_of(options.model).has_all_layers
    depths = range(all_layers, 0, -1) if any(is_whole(name) for name, _ in options.targets) else [0]
    seq = options.seq
    while seq:
        for depth in depths:
            flags = [f"--depth {depth}"] * (depth < all_layers and depth > 0) + [f"--seq {seq}"] * (seq < options.seq)
            yield f"{' '.join(flags)} would fit", replace(options, depth=depth, seq=seq)
        seq //= 2


def _fitting(need: Need, free: Free) -> Path | None:
    for place, room in free.places.items():
        beside = need.memory + (need.at_worst if place == SHM else 0)
        if room > SPARE * need.folder and (free.memory is None or beside <= free.memory):
            return place
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
