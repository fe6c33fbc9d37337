"""What a reader of a whole run should know beside its verdicts."""

from __future__ import annotations

from ..backends import Backend
from ..case.plan import OF_LOCAL
from ..config.options import Resolved
from ..faults import find_fault
from ..libraries.torch_private import NO_PROCESS_GROUP
from ..models import family_of, presets, real_models
from ..results.result import Result


def run_notes(options: Resolved, backend: Backend, results: list[Result]) -> list[str]:
    """A sentence for each thing that holds of the whole run."""
    real = not options.case and options.model_name not in presets().keys() - real_models().keys()
    packed = family_of(options.model).weight_notes(options.model, options.degrees) if real else ()
    kernels = _kernel_note() if options.kernels == "nki" else None
    fault = f"fault {options.fault} was put in on purpose: {find_fault(options.fault).cause}" if options.fault else None
    bare = None if options.fault_control else "--no-fault-control: nothing shows that these checks reject a mistake"
    missed = not backend.process_group and any(NO_PROCESS_GROUP in r.error for r in results)
    grouped = OF_LOCAL if missed else None
    return [*growth_notes(results), *(note for note in (fault, bare, *packed, kernels, grouped) if note)]


def _kernel_note() -> str:
    from ..kernels.registry import STATUS  # noqa: PLC0415  (imports the interpreter)

    return f"NKI kernels: {STATUS}"


def growth_notes(results: list[Result]) -> list[str]:
    """A sentence for each float32 error that grows with the degree, even within the limit."""
    notes = []
    for component, layer in dict.fromkeys((r.component, r.layer) for r in results):
        passed = [r for r in results if (r.component, r.layer, r.dtype) == (component, layer, "float32") and r.gates]
        error = {r.tp: r.gates[0].value for r in passed if r.status.passed}
        if len(error) > 1 and error[max(error)] > 4 * error[min(error)] > 0:
            notes.append(
                f"{component} layer {layer}: the float32 error grows from {error[min(error)]:.1e} at tp "
                f"{min(error)} to {error[max(error)]:.1e} at tp {max(error)}; clean runs stay flat"
            )
    return notes
