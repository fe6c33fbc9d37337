"""The mark `tp`: degrees out of its arguments, one run of the test for each, and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from .settings import Settings

FIXTURES = ("neuron_cores", "tp_group")  # not tp_degree: tests may have a parameter of that name
EXAMPLE = "for example @pytest.mark.tp(1, 2, 8, 32)"


def degrees_of(mark: pytest.Mark) -> tuple[int, ...]:
    """The degrees: `tp(1, 2, 8)`, or one sequence of them, `tp(DEGREES)`.

    Raises:
        ValueError: there are none, or other things than distinct positive integers; the message completes
            "@pytest.mark.tp ...".
    """
    if mark.kwargs:
        raise ValueError(f"takes degrees only, not {', '.join(mark.kwargs)}=: {EXAMPLE}.")
    given = mark.args[0] if len(mark.args) == 1 and isinstance(mark.args[0], (tuple, list)) else mark.args
    if not given:
        raise ValueError(f"needs degrees: {EXAMPLE}.")
    wrong = [d for d in given if not isinstance(d, int) or isinstance(d, bool) or d < 1]
    if wrong:
        raise ValueError(f"has {wrong[0]!r} among its degrees; positive numbers are needed: {EXAMPLE}.")
    if len(set(given)) != len(given):
        raise ValueError(f"names a degree twice: {', '.join(map(str, given))}.")
    return tuple(given)


def parametrize(metafunc: pytest.Metafunc) -> None:
    """One run of the test per degree, with an id like `tp8`; it holds its cores whichever fixtures it names.

    A mark that cannot be is left for `first_mistake`, which knows which tests were chosen.
    """
    mark = metafunc.definition.get_closest_marker("tp")
    if mark is None:
        return
    try:
        degrees = degrees_of(mark)
    except ValueError:
        return
    if "tp_degree" not in metafunc.fixturenames:
        metafunc.fixturenames.append("tp_degree")
    metafunc.parametrize("tp_degree", degrees, ids=[f"tp{degree}" for degree in degrees], indirect=True)


def degree_of(item: pytest.Item) -> int | None:
    """The degree that this run of a marked test was given; None for a test without the mark."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("tp_degree") if item.get_closest_marker("tp") else None


def fixture_names(item: pytest.Item) -> tuple[str, ...]:
    """The fixtures that the item will ask for."""
    return tuple(getattr(item, "fixturenames", ()))


def missing_mark(nodeid: str, fixture: str) -> str:
    """The sentence for a fixture of ours in a test that does not say how many cores it needs."""
    return f"{nodeid} uses {fixture} without @pytest.mark.tp, so how many cores it needs is not known: {EXAMPLE}."


def first_mistake(items: Iterable[pytest.Item], settings: Settings, *, listing: bool = False) -> str | None:
    """What is wrong with the first of the chosen tests that cannot run, in one sentence; None if all can.

    Args:
        items: the chosen tests.
        settings: the pool.
        listing: the tests are only listed, so it does not matter what this machine has.
    """
    return next((text for text in (_mistake(item, settings, listing) for item in items) if text), None)


def _mistake(item: pytest.Item, settings: Settings, listing: bool) -> str | None:
    mark = item.get_closest_marker("tp")
    if mark is None:
        used = [name for name in FIXTURES if name in fixture_names(item)]
        return missing_mark(item.nodeid, used[0]) if used else None
    try:
        degrees_of(mark)
    except ValueError as error:
        return f"{item.nodeid}: @pytest.mark.tp {error}"
    degree = degree_of(item)
    if degree is None:
        return f"{item.nodeid}: @pytest.mark.tp marks functions and classes of tests, and this is neither."
    return None if listing else _unfit(item.nodeid, degree, settings)


def _unfit(nodeid: str, degree: int, settings: Settings) -> str | None:
    from ..config.divisibility import TRN1_DEGREES  # noqa: PLC0415
    from ..system.core_packing import CoreRequest  # noqa: PLC0415

    if settings.neuron and degree not in TRN1_DEGREES:
        return f"{nodeid}: tp degree {degree} does not exist on Trn1; 1, 2, 8 and 32 NeuronCores work together."
    if CoreRequest(count=degree, cores=settings.cores).starts:
        return None
    kind, remedy = ("NeuronCores", 'leave it out with -k "not tp{}"') if settings.neuron else (
        "virtual cores", 'choose --neuron-cores {0}, or leave it out with -k "not tp{0}"'
    )  # fmt: skip
    return f"{nodeid} needs {degree} cores in a row, but the pool has {len(settings.cores)} {kind}: " + (
        remedy.format(degree) + "."
    )
