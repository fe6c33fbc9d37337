"""The work of the ranks of one degree, as a JSON file: case names, seeds, sizes and paths, never code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arithmetic.floats import nominal_name
from ..case.case import Case
from ..case.case_file import load_case
from ..config.dtypes import EXACT, draws_in
from ..models import find_family


@dataclass(frozen=True, kw_only=True)
class Task:
    """One component at one layer with one draw of weights and inputs, in one dtype or ("") all of the job's.

    `fault` names the mistake that ranks put into it; the judge does not read it. Where the mistake can have several
    places, `place` says which and `rank` on which rank (-1: all). `grafts` names the taps whose tensors are replaced by
    right ones. `number` tells tasks apart that differ in these alone. `tokens`: the task is run on the first so many
    tokens of each row, 0 for all.
    """

    component: str
    layer: int
    draw: int
    fault: str = ""
    dtype: str = ""
    tokens: int = 0
    place: str = ""
    rank: int = -1
    number: int = 0
    grafts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of the task's files, without their endings."""
        number = str(self.number) if self.number else ""
        parts = (f"t{self.tokens}" if self.tokens else "", self.fault, number, self.dtype)
        return ".".join((f"{self.component}.{self.layer}.d{self.draw}", *filter(None, parts)))

    @property
    def clean(self) -> Task:
        """The task without its fault, in every dtype, on all tokens: both have the same inputs and oracle."""
        return Task(component=self.component, layer=self.layer, draw=self.draw)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Which Cases the tasks are of: components of a family's model, or a user's Case in a file.

    Of a family: its name, the whole `model`, and `depth`, how many layers its largest component is run with, 0 for all.
    Of a user: `case_spec`, FILE.py:NAME; `sha256` of the file's text, which every process compares with what it reads;
    `label`, the Case's name in results. `batch_size` is in rows, `seq_len` in tokens. `axes` are the ranks along
    axes of a Case's mesh that were asked for.
    """

    batch_size: int
    seq_len: int
    family: str = ""
    model: Any = None
    depth: int = 0
    case_spec: str = ""
    sha256: str = ""
    label: str = ""
    axes: dict[str, int] = field(default_factory=dict)

    def case(self, task: Task, *, dtype: str, tp: int) -> Case:
        """The case of a task at a degree of `tp` ranks; a user's is the same in every dtype.

        Raises:
            UsageError: a user's file that cannot be read, has no such Case, or has another text than `sha256` says.
        """
        if self.case_spec:
            return load_case(self.case_spec, self.sha256).at(tp, self.axes)
        config = self.config(dtype=dtype, tp=tp, tokens=task.tokens, component=task.component)
        case: Case = find_family(self.family).case(task.component, config, task.layer)
        return case.at(tp, self.axes)

    def config(self, *, dtype: str, tp: int, tokens: int = 0, component: str = "") -> Any:
        """The config that a component is run with, on `tp` ranks and the first `tokens` of each row, 0 for all.

        `component` "" is the whole model. The type of the config is the family's.
        """
        model = self.model
        if self.extent(component):
            model = dataclasses.replace(model, num_hidden_layers=self.depth)
        return find_family(self.family).at(
            model, batch=self.batch_size, seq=tokens or self.seq_len, dtype=nominal_name(dtype), tp=tp
        )

    def called(self, task: Task) -> str:
        """The name of a task in messages: `mlp layer 0`, or the label of a user's case."""
        return self.label or f"{task.component} layer {task.layer}"

    def step(self, task: Task) -> str:
        """The name of a task in progress and timeout messages: its key, with the label of a user's case."""
        return task.key.replace(task.component, self.label, 1) if self.label else task.key

    def extent(self, component: str) -> str:
        """How many of the model's layers a component is run with, as "2 of 24 layers"; "" for all of them."""
        if not self.depth or not find_family(self.family).has_all_layers(component):
            return ""
        return f"{self.depth} of {self.model.num_hidden_layers} layers"


@dataclass(frozen=True, kw_only=True)
class Job:
    """All tasks of one degree, in order, and where their files are.

    `weights` holds per draw the safetensors files of the checkpoint; `folder` the inputs ({task}.inputs.safetensors)
    and, when the ranks are done, their outputs ({task}.rank{r}.safetensors). `unlocked` asks for a second run of the
    first draw in 16 bits, with the modules' own routing. `kernels` says what runs the modules' hot parts, `taps`
    whether the intermediate tensors that the cases name are written down too. `repeats` forwards are timed after the
    one that is judged. `tp` is the number of ranks. `tied` maps a parameter's name in the checkpoint to that of another
    one, where the reference has one parameter of both names.
    """

    tp: int
    subject: Subject
    tasks: tuple[Task, ...]
    dtypes: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]
    folder: str
    unlocked: bool = False
    kernels: str = "torch"
    repeats: int = 0
    taps: bool = False
    tied: dict[str, str] = field(default_factory=dict)

    def dtypes_of(self, task: Task) -> tuple[str, ...]:
        """The names of the dtypes that a task is run in, as "float32"; see `draws_in`."""
        given = (task.dtype,) if task.dtype else self.dtypes
        return tuple(name for name in given if task.draw < draws_in(name, self.dtypes, task.draw + 1))

    def inputs_path(self, task: Task) -> Path:
        """The file of a task's full inputs, and of the routing that its ranks are locked to."""
        return Path(self.folder) / f"{task.clean.key}.inputs.safetensors"

    def right_path(self, task: Task) -> Path:
        """The file of the full right tensors that `grafts` of a task names; those of exact arithmetic have residues."""
        kind = EXACT if task.dtype == EXACT else ""
        return Path(self.folder) / f"{dataclasses.replace(task.clean, dtype=kind).key}.right.safetensors"

    def field_path(self, task: Task) -> Path:
        """The file of the primes and tables that runs of a task in exact arithmetic use."""
        return Path(self.folder) / f"exact.d{task.draw}.safetensors"

    def output_path(self, task: Task, rank: int) -> Path:
        """The file of the outputs of `rank` (0 to tp - 1), with its report as metadata."""
        return Path(self.folder) / f"{task.key}.tp{self.tp}.rank{rank}.safetensors"

    def write(self) -> Path:
        """Write the job as JSON into its folder, and return the file's path."""
        path = Path(self.folder) / f"job.tp{self.tp}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")
        return path


def read_job(path: Path) -> tuple[Job, str]:
    """Read a job file; returns the job, and the sha256 of its text, by which the judge compares what ranks read."""
    text = path.read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    subject = dict(values["subject"])
    if subject["family"]:
        subject["model"] = find_family(subject["family"]).config(**subject["model"])
    job = Job(
        tp=values["tp"],
        subject=Subject(**subject),
        tasks=tuple(Task(**task | {"grafts": tuple(task["grafts"])}) for task in values["tasks"]),
        dtypes=tuple(values["dtypes"]),
        weights=tuple(tuple(paths) for paths in values["weights"]),
        folder=values["folder"],
        unlocked=values["unlocked"],
        kernels=values["kernels"],
        repeats=values["repeats"],
        taps=values["taps"],
        tied=values["tied"],
    )
    return job, hashlib.sha256(text.encode()).hexdigest()
