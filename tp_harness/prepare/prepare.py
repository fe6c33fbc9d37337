"""What is prepared before any rank starts: cases that hold, weights on disk, inputs, and what must come out.

All built-in components of a run are prepared together, each Case of a user by itself.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..case.plan import check_plan, check_submodules, stand_in_group, try_placement
from ..case.rehearsal import UnrehearsedError, makes_groups, unrehearsed_note
from ..checkpoint.checkpoint import (
    Checkpoint,
    TensorSpec,
    check_checkpoint,
    find_checkpoint,
    write_checkpoint,
    write_tiles,
)
from ..checkpoint.tiled_file import SUFFIX as TILES_SUFFIX
from ..checkpoint.tiled_file import can_map
from ..checkpoint.translation import Translation
from ..config.options import OWN, Resolved
from ..errors import UsageError, blamed_on
from ..models import family_of
from ..parallel.placements import Placement, Replicate
from ..ranks.job import Job, Subject, Task
from ..ranks.rank_inputs import read_inputs
from ..system.scratch_dir import WorkFolder, sweep
from .control_places import Places, places_of
from .expectation import Expectation, expect
from .material import Material, Progress, Target
from .memory_budget import SHM, Free, Need, need_of, place_for
from .oracle import make_reference, parameter_specs, specs_of
from .own_cases import OwnCase, own_cases
from .random_weights import INITS, Init, period
from .unreached_parameters import notes as idle_notes


def prepare(options: Resolved, *, copies: int, process_group: bool) -> tuple[Preparation, ...]:
    """One preparation for all built-in components of a run, or one for each Case.

    Raises:
        UsageError: what `Preparation` raises; of several Cases, what each of them does.
    """
    if not options.case:
        return (Preparation(options, copies=copies, process_group=process_group),)
    found: list[Preparation] = []
    refused: dict[tuple[str, str], list[str]] = {}  # by what is wrong, and whose name that begins with, the Cases
    cases = own_cases(options.case)
    if options.targets != (OWN,):  # of a run that several hosts share, which named all of its Cases
        cases = tuple(
            replace(own, label=label, layer=layer) for own, (label, layer) in zip(cases, options.targets, strict=True)
        )
    for own in cases:
        alone = replace(options, case=(own.spec,), targets=(OWN,))
        try:
            found.append(Preparation(alone, copies=copies, process_group=process_group, own=own))
        except UsageError as error:
            refused.setdefault((str(error), error.of), []).append(own.label)
    if refused:
        raise UsageError(
            " ".join(
                text if len(cases) == 1 or of == names[0] else f"{', '.join(names)}: {text}"
                for (text, of), names in refused.items()
            )
        )
    return tuple(found)


class Preparation:
    """Turns resolved options into Material.

    `copies` is how many of their weights the ranks of a degree copy; `process_group` says whether torch.distributed
    has a default group in them. `own` is the user's Case that it is about; None finds the one that `options` name.

    Building every case once, in the constructor, is where a bad plan or module is found, before any rank starts.

    Raises:
        UsageError: a case that cannot be built, a plan that does not divide, or a bad checkpoint.
    """

    def __init__(
        self, options: Resolved, *, copies: int = 0, process_group: bool = True, own: OwnCase | None = None
    ) -> None:
        self.options, self.copies, self.process_group = options, copies, process_group
        self.own = own = own or next(iter(own_cases(options.case)), None)
        self.case_file = own.spec.rpartition(":")[0] if own else ""
        self.family = family_of(options.model)
        self.subject = Subject(batch_size=options.batch, seq_len=options.seq)
        if own:
            self.subject = replace(self.subject, case_spec=own.spec, sha256=own.sha256, label=own.label)
        else:
            family = self.family.name
            self.subject = replace(self.subject, family=family, model=options.model, depth=options.depth)
        self.placed: dict[int, Mapping[str, Placement]] = {}  # of the last target's parameters, by degree
        self._unrehearsed: dict[int, str] = {}  # by degree, why no module could be made before the ranks
        self.targets = tuple(self._target(name, layer) for name, layer in options.targets)
        specs: dict[str, TensorSpec] = {}
        for target in self.targets:
            with blamed_on(self.case_file):
                specs |= {spec.name: spec for spec in self._placeable_specs(target)}
        self.specs = tuple(specs.values())
        self.given = find_checkpoint(Path(options.checkpoint)) if options.checkpoint else None
        self.translation = self._translation()
        self._idle: dict[str, torch.Tensor] = {}  # of an own module, what the inputs of no draw reach
        self._places = Places()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the verdicts should know of the weights and inputs."""
        said = [self.translation.note] if self.translation else []
        said += [unrehearsed_note(self._unrehearsed)] if self._unrehearsed else []
        return (*said, *idle_notes(self._idle), *self._places.notes)

    def notes_in(self, count: int) -> tuple[str, ...]:
        """The notes as a run of so many preparations has them: of several Cases each says its name."""
        name = f"{self.own.label}: " if self.own and count > 1 else ""
        return tuple(name + note for note in self.notes)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that goes with the run: in shared memory where there is room, else in the temporary folder.

        A disk would start to write weights back that live for seconds.

        Raises:
            UsageError: neither has room, or the run needs more memory than there is.
        """
        places = [place for place in (SHM, Path(tempfile.gettempdir())) if place.is_dir()]
        sweep(places)
        with WorkFolder(place_for(self.options, self._need, Free.here(places))) as folder:
            yield folder

    def _need(self, options: Resolved) -> Need:
        """What this run needs, or one that is smaller in its options."""
        if self.given:
            files = int(self.translation is not None)
            return need_of(options, self.specs, lambda spec: files * spec.bytes, copies=self.copies)

        def stored(spec: TensorSpec) -> int:
            whole = math.prod(spec.shape)
            return options.draws * spec.dtype.itemsize * (spec.tile(period) if can_map() else whole)

        return need_of(options, self.specs, stored, copies=self.copies)

    def material(self, folder: Path, progress: Progress) -> Material:
        """Write weights and inputs into `folder` and compute what every task must give."""
        progress("weights")
        with self._full_said(folder):
            checkpoints = self._checkpoints(folder)
        material = Material(
            options=self.options,
            subject=self.subject,
            targets=self.targets,
            checkpoints=checkpoints,
            expectations={},
            folder=folder,
            own=self.own,
        )
        job = material.job(1, self.targets)
        expectations = {}
        for task in job.tasks:
            progress(f"reference of {self.subject.called(task)}, draw {task.draw}")
            with blamed_on(self.case_file):
                expectation = expect(job, task.clean, checkpoints[task.draw], self.options.seed)
                if self.own:  # a user's reference may fail in one dtype: find out before any rank starts
                    _ = expectation.baselines
                    for name, places in expectation.run_idle().items():
                        self._idle[name] = self._idle.get(name, places) & places
            with blamed_on(self.case_file):
                self._check_placements(job, task, expectation)
            expectations[task.clean] = expectation
        material = replace(material, expectations=expectations)
        if not self.case_file:
            return material
        case = self.subject.case(job.tasks[0], dtype=self.options.dtypes[0], tp=1)
        draws = [read_inputs(job.inputs_path(task)).inputs for task in job.tasks]
        self._places = places_of(case, self.specs, self.placed, draws)
        return replace(material, places=self._places)

    @contextmanager
    def _full_said(self, folder: Path) -> Iterator[None]:
        """Say that there was room, and no longer is, as a UsageError."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UsageError(
                f"{folder.parent} is full: {os.strerror(error.errno)} while the weights were written there; make room, "
                "or choose another folder with TMPDIR."
            ) from None

    def _target(self, name: str, layer: int) -> Target:
        fault, draws = self.options.fault, range(self.options.draws)
        tasks = (Task(component=name, layer=layer, draw=draw, fault=fault) for draw in draws)
        return Target(name=name, layer=layer, tasks=tuple(tasks))

    def _placeable_specs(self, target: Target) -> tuple[TensorSpec, ...]:
        """The target's tensors, after a rank's module was built and every parameter placed at every degree."""
        task, dtype = target.tasks[0], self.options.dtypes[0]
        case = self.subject.case(task, dtype=dtype, tp=1)
        reference = make_reference(case)
        specs = specs_of(case, reference)
        if self.own:
            check_submodules(case, "reference", reference)
            self.own.check_init(self.options, specs)
        shapes, lingering = {spec.name: spec.shape for spec in specs}, False
        for tp in self.options.degrees:
            at_degree = self.subject.case(task, dtype=dtype, tp=tp)
            with stand_in_group(tp, real=not case.lazy and self.process_group):
                try:
                    module, self.placed[tp] = check_plan(at_degree, shapes, tp, lingering=lingering)
                except UnrehearsedError as error:  # the ranks check the same
                    self._unrehearsed[tp] = str(error)
                    names = (name.removeprefix(case.prefix) for name in shapes)
                    self.placed[tp] = {name: at_degree.plan.get(name, Replicate()) for name in names}
                    continue
                finally:
                    lingering |= makes_groups()
                if self.own:
                    check_submodules(at_degree, "sharded module", module)
                    self.own.check_kernels(self.options, module)
        return specs

    def _check_placements(self, job: Job, task: Task, expectation: Expectation) -> None:
        """Inputs and outputs divide at every degree; a rank or the verdict would stumble over one that does not."""
        inputs, outputs = read_inputs(job.inputs_path(task)).inputs, expectation.oracle.outputs
        for tp in self.options.degrees:
            case = self.subject.case(task, dtype=self.options.dtypes[0], tp=tp)
            if len(outputs) != len(case.outputs):
                raise UsageError(
                    f"{case.name} returns {len(outputs)} outputs (None left out), and `output` of its Case places "
                    f"{len(case.outputs)}: give it one placement for each."
                )
            for i, output in enumerate(outputs):
                if not output.is_floating_point():
                    raise UsageError(
                        f"output {i} of {case.name} is {output.dtype}; only floating-point outputs can be judged: "
                        "leave it out of what both modules return."
                    )
            placed = [(f"input {i}", case.input_placement(i), x) for i, x in enumerate(inputs)]
            placed += [(f"output {i}", p, y) for i, (p, y) in enumerate(zip(case.outputs, outputs, strict=True))]
            for name, placement, tensor in placed:
                try_placement(placement, tensor, f"{name} of {case.name}", tp)

    def _translation(self) -> Translation | None:
        found = self.family.translation(self.given, self._model_shapes()) if self.given and not self.own else None
        if found:
            found.check(self.specs)
        return found

    def _model_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the whole model, by public name."""
        config = self.subject.config(dtype="bfloat16", tp=1)
        whole = self.family.case(self.family.whole, config, 0)
        return {spec.name: spec.shape for spec in parameter_specs(whole)}

    def _checkpoints(self, folder: Path) -> tuple[Checkpoint, ...]:
        """The user's checkpoint for every draw, or generated weights, new ones for each draw."""
        if self.given:
            checkpoint = self.given
            if self.translation:
                path = folder / "weights.translated.safetensors"
                write_checkpoint(path, self.specs, self.translation.pieces)
                checkpoint = Checkpoint([path])
            check_checkpoint(checkpoint, self.specs, None if self.own else self._model_shapes())
            return (checkpoint,) * self.options.draws
        init = INITS[self.options.init]
        checkpoints = []
        for draw in range(self.options.draws):
            seed = self.options.seed + draw
            path = folder / f"weights.d{draw}{TILES_SUFFIX if can_map() else '.safetensors'}"
            values = partial(_initial, init, seed)
            if can_map():
                write_tiles(path, self.specs, values, period)
            else:
                write_checkpoint(path, self.specs, values)
            checkpoints.append(Checkpoint([path]))
        return tuple(checkpoints)


def _initial(init: Init, seed: int, spec: TensorSpec) -> torch.Tensor:
    return spec.fixed if spec.fixed is not None else init(spec.drawn_as or spec.name, spec.shape, seed)
