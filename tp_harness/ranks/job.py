"""What the ranks of one degree are to do, as a JSON file: case names, seeds, sizes and paths, never code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..case.case import Case
from ..case.case_file import load_case
from ..config.model import InferenceConfig, ModelConfig, NeuronConfig
from ..models.gpt_oss.components import component_case

WHOLE = "transformer"  # the component that has all layers


@dataclass(frozen=True, kw_only=True)
class Task:
    """One component at one layer with one draw of weights and inputs, in one dtype or ("") all of the job's.

    `fault` names the mistake that ranks put into it; nobody else looks at it, so that it is judged as if it were none.
    If it can be put in anywhere, `place` says where and `rank` on which rank (-1: all); `number` tells tasks apart that
    differ in these alone. `tokens` is how many of each row's tokens it is run on, the first ones, or 0 for all.
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

    @property
    def key(self) -> str:
        """Names the task's files."""
        number = str(self.number) if self.number else ""
        parts = (f"t{self.tokens}" if self.tokens else "", self.fault, number, self.dtype)
        return ".".join((f"{self.component}.{self.layer}.d{self.draw}", *filter(None, parts)))

    @property
    def clean(self) -> Task:
        """The task without its fault, in every dtype, on all tokens: what it is compared with."""
        return Task(component=self.component, layer=self.layer, draw=self.draw)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Which cases a name stands for: the built-in components of a model, or a user's case in a file.

    `depth` is how many layers the transformer is run with, 0 for all that `model` has; `label` is what results call a
    user's case.
    """

    model: ModelConfig
    batch_size: int
    seq_len: int
    case_spec: str | None = None
    depth: int = 0
    label: str = ""

    def case(self, task: Task, *, dtype: str, tp: int) -> Case:
        """The case of a task; a user's case is the same in every dtype and at every degree."""
        if self.case_spec is not None:
            return load_case(self.case_spec)
        model = self.model
        if self.extent(task.component):
            model = dataclasses.replace(model, num_hidden_layers=self.depth)
        config = InferenceConfig.of(model, self.neuron_config(dtype=dtype, tp=tp, tokens=task.tokens))
        return component_case(task.component, config, task.layer)

    def called(self, task: Task) -> str:
        """A task as people are told of it: `mlp layer 0`, or a user's case by its name."""
        return self.label or f"{task.component} layer {task.layer}"

    def step(self, task: Task) -> str:
        """A task's key, with the name of a user's case."""
        return task.key.replace(task.component, self.label, 1) if self.label else task.key

    def extent(self, component: str) -> str:
        """What of the model a component is run with, as "2 of 24 layers"; "" for all of it."""
        return f"{self.depth} of {self.model.num_hidden_layers} layers" if self.depth and component == WHOLE else ""

    def neuron_config(self, *, dtype: str, tp: int, tokens: int = 0) -> NeuronConfig:
        """How the model is used in one run, or on the first tokens of one."""
        seq_len = tokens or self.seq_len
        return NeuronConfig(batch_size=self.batch_size, seq_len=seq_len, torch_dtype=dtype, tp_degree=tp)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All tasks of one degree, in order, and where their files are.

    `weights` holds per draw the safetensors files of the checkpoint; `folder` the inputs ({task}.inputs.safetensors)
    and, when the ranks are done, their outputs ({task}.rank{r}.safetensors). `unlocked` asks for a second run of the
    first draw in 16 bits, with the modules' own routing. `kernels` says what runs the modules' hot parts, `taps`
    whether the intermediate tensors that the cases name are written down too. `repeats` forwards are timed after the
    one that is judged.
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

    def dtypes_of(self, task: Task) -> tuple[str, ...]:
        """The dtypes that a task is run in."""
        return (task.dtype,) if task.dtype else self.dtypes

    def inputs_path(self, task: Task) -> Path:
        """Full inputs, and the routing that the ranks are locked to."""
        return Path(self.folder) / f"{task.clean.key}.inputs.safetensors"

    def output_path(self, task: Task, rank: int) -> Path:
        """One rank's outputs, with its record as the file's metadata."""
        return Path(self.folder) / f"{task.key}.tp{self.tp}.rank{rank}.safetensors"

    def write(self) -> Path:
        """Write the job into its folder; returns the file's path."""
        path = Path(self.folder) / f"job.tp{self.tp}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")
        return path


def read_job(path: Path) -> tuple[Job, str]:
    """The job, and the hash by which ranks prove that they read the same one."""
    text = path.read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    subject = dict(values["subject"])
    subject["model"] = ModelConfig(**subject["model"])
    job = Job(
        tp=values["tp"],
        subject=Subject(**subject),
        tasks=tuple(Task(**task) for task in values["tasks"]),
        dtypes=tuple(values["dtypes"]),
        weights=tuple(tuple(paths) for paths in values["weights"]),
        folder=values["folder"],
        unlocked=values["unlocked"],
        kernels=values["kernels"],
        repeats=values["repeats"],
        taps=values["taps"],
    )
    return job, hashlib.sha256(text.encode()).hexdigest()
