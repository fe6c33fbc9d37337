"""Preparing a run before any rank starts: checked cases, weights on disk, inputs, and expected outputs.

All built-in components of a run are prepared together, each Case of a user by itself.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..arithmetic.residues.field import Field
from ..case.rehearsal import unrehearsed_note
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
from ..config.dtypes import EXACT
from ..config.options import AXES, OWN, Resolved
from ..errors import UsageError, blamed_on
from ..models import SMALL, family_of
from ..parallel.placements import Placement
from ..ranks.job import Job, Subject, Task
from ..system.scratch_dir import WorkFolder, sweep
from .control_places import Places, places_of
from .expectation import Expectation, expect
from .material import Material, Progress, Target
from .memory_budget import SHM, Free, Need, need_of, place_for
from .oracle import parameter_specs, tied_names
from .own_cases import OwnCase, own_cases
from .plan_checks import check_placements, check_target
from .random_weights import INITS, Init, period
from .unreached_parameters import notes as idle_notes


def prepare(options: Resolved, *, copies: int, process_group: bool) -> tuple[Preparation, ...]:
    """One preparation for all built-in components of a run, or one for each Case; arguments as of `prepare_one`.

    Raises:
        UsageError: as `prepare_one`; with several Cases, the message holds that of each.
    """
    if not options.case:
        return (prepare_one(options, copies=copies, process_group=process_group),)
    found: list[Preparation] = []
    refused: dict[tuple[str, str], list[str]] = {}  # by message and by the name that it begins with, the Cases
    cases = own_cases(options.case)
    if options.targets != (OWN,):  # the first of several hosts has named all Cases
        cases = tuple(
            replace(own, label=label, layer=layer) for own, (label, layer) in zip(cases, options.targets, strict=True)
        )
    for own in cases:
        alone = replace(options, case=(own.spec,), targets=(OWN,))
        try:
            found.append(prepare_one(alone, copies=copies, process_group=process_group, own=own))
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


def prepare_one(
    options: Resolved, *, copies: int = 0, process_group: bool = True, own: OwnCase | None = None
) -> Preparation:
    """Check resolved options: every case is built once, so that a bad plan or module is found before any rank starts.

    Args:
        options: of the run.
        copies: how many copies of its weights each rank holds beside the mapped file.
        process_group: whether torch.distributed has a default group in the ranks.
        own: the user's Case to prepare; None finds the one that `options` name.

    Raises:
        UsageError: a case that cannot be built, a plan that does not divide, or a bad checkpoint.
    """
    own = own or next(iter(own_cases(options.case)), None)
    asked = {axis: size for axis in AXES if (size := getattr(options, axis))}
    family, subject = family_of(options.model), Subject(batch_size=options.batch, seq_len=options.seq, axes=asked)
    if own:
        subject = replace(subject, case_spec=own.spec, sha256=own.sha256, label=own.label)
    else:
        subject = replace(subject, family=family.name, model=options.model, depth=options.depth)
    targets = tuple(_target(options, name, layer) for name, layer in options.targets)
    checked = []
    for target in targets:
        with blamed_on(own.file if own else ""):
            checked.append(check_target(options, subject, own, target.tasks[0], process_group=process_group))
    specs = tuple({spec.name: spec for each in checked for spec in each.specs}.values())
    given = find_checkpoint(Path(options.checkpoint)) if options.checkpoint else None
    found = family.translation(given, _model_shapes(subject)) if given and not own else None
    if found:
        found.check(specs)
    return Preparation(
        options=options,
        subject=subject,
        targets=targets,
        own=own,
        copies=copies,
        specs=specs,
        placed=checked[-1].placed if checked else {},
        unrehearsed={tp: why for each in checked for tp, why in each.unrehearsed.items()},
        given=given,
        translation=found,
    )


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Checked options; `material` computes from them what ranks and verdicts need."""

    options: Resolved
    subject: Subject
    targets: tuple[Target, ...]
    own: OwnCase | None  # the user's Case, None for built-in components
    copies: int  # of its weights that each rank holds
    specs: tuple[TensorSpec, ...]  # all tensors
    placed: Mapping[int, Mapping[str, Placement]]  # of a user's Case, as `Checked` has it, and so is `unrehearsed`
    unrehearsed: Mapping[int, str]
    given: Checkpoint | None  # the user's
    translation: Translation | None  # of its names to public ones, where it has others

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that is deleted after the run: in shared memory where there is room, else in the temporary folder.

        On a disk the system would write back weights that are needed for seconds.

        Raises:
            UsageError: neither has room, or the run needs more memory than is free.
        """
        places = [place for place in (SHM, Path(tempfile.gettempdir())) if place.is_dir()]
        sweep(places)
        with WorkFolder(place_for(self.options, self.need, Free.here(places))) as folder:
            yield folder

    def need(self, options: Resolved) -> Need:
        """The bytes that this run needs with `options`, which may ask for a smaller run."""
        if self.given:
            files = int(self.translation is not None)
            return need_of(options, self.specs, lambda spec: files * spec.bytes, copies=self.copies)

        def stored(spec: TensorSpec) -> int:
            whole = math.prod(spec.shape)
            return options.draws * spec.dtype.itemsize * (spec.tile(period) if can_map() else whole)

        return need_of(options, self.specs, stored, copies=self.copies)

    def material(self, folder: Path, progress: Progress) -> Material:
        """Write weights and inputs into `folder`, and compute the oracle of every task.

        `progress` is called with the name of each step.

        Raises:
            UsageError: the folder is full, the checkpoint lacks a tensor or has one of another shape, or the user's
                reference or inputs raise or cannot be judged.
        """
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
            tied=tied_names(self.specs),
        )
        job = material.job(1, self.targets)
        if EXACT in self.options.dtypes:
            self._write_fields(job)
        expectations: dict[Task, Expectation] = {}
        unreached: dict[str, torch.Tensor] = {}  # of a user's module, the places that the inputs of no draw reach
        for task in job.tasks:
            progress(f"reference of {self.subject.called(task)}, draw {task.draw}")
            with blamed_on(self.own.file if self.own else ""):
                expectation = expect(job, task.clean, checkpoints[task.draw], self.options.seed)
                if self.own:  # a user's reference may fail in one dtype: find out before any rank starts
                    _ = expectation.baselines
                    for name, reached in expectation.run_idle().items():
                        unreached[name] = unreached.get(name, reached) & reached
                check_placements(self.options, self.subject, task, expectation)
            expectations[task.clean] = expectation
        places = Places()
        if self.own:
            case = self.subject.case(job.tasks[0], dtype=self.options.dtypes[0], tp=max(self.options.degrees))
            draws = [expectations[task.clean].inputs for task in job.tasks]
            places = places_of(case, self.specs, self.placed, draws)
        notes = [self.translation.note] if self.translation else []
        notes += [unrehearsed_note(self.unrehearsed)] if self.unrehearsed else []
        notes += [*idle_notes(unreached), *places.notes]
        return replace(material, expectations=expectations, places=places, notes=tuple(notes))

    def _write_fields(self, job: Job) -> None:
        """Draw primes and keys for each draw from the run's seed: two pairs, or one for a large model."""
        pairs = 2 if self.options.model.hidden_size <= SMALL else 1
        for draw, task in {task.draw: task for task in job.tasks if EXACT in job.dtypes_of(task)}.items():
            Field.drawn(self.options.seed + draw, pairs).write(job.field_path(task))

    @contextmanager
    def _full_said(self, folder: Path) -> Iterator[None]:
        """Raise a UsageError instead of the OSError of a full disk or quota."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UsageError(
                f"{folder.parent} is full: {os.strerror(error.errno)} while the weights were written there; make room, "
                "or choose another folder with TMPDIR."
            ) from None

    def _checkpoints(self, folder: Path) -> tuple[Checkpoint, ...]:
        """The user's checkpoint for every draw, or generated weights, new ones for each draw."""
        if self.given:
            checkpoint = self.given
            if self.translation:
                path = folder / "weights.translated.safetensors"
                write_checkpoint(path, self.specs, self.translation.pieces)
                checkpoint = Checkpoint([path])
            check_checkpoint(checkpoint, self.specs, None if self.own else _model_shapes(self.subject))
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


def _target(options: Resolved, name: str, layer: int) -> Target:
    tasks = (Task(component=name, layer=layer, draw=draw, fault=options.fault) for draw in range(options.draws))
    return Target(name=name, layer=layer, tasks=tuple(tasks))


def _model_shapes(subject: Subject) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the whole model, by public name."""
    config, family = subject.config(dtype="bfloat16", tp=1), family_of(subject.model)
    return {spec.name: spec.shape for spec in parameter_specs(family.case(family.whole, config, 0))}


def _initial(init: Init, seed: int, spec: TensorSpec) -> torch.Tensor:
    return spec.fixed if spec.fixed is not None else init(spec.drawn_as or spec.name, spec.shape, seed)
