"""A Case on a mesh: right and wrong modules judged, and meshes and placements that are refused before any rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_moe import MOE
from own_runs import run_case
from torch import nn

from tp_harness.case.case import Case
from tp_harness.errors import UsageError
from tp_harness.parallel.on_mesh import on_mesh
from tp_harness.parallel.placements import KVHeads, Partial, Replicate, Shard
from tp_harness.results.result import Result, Status

DTYPES = ("exact", "float32", "bfloat16")


def results(folder: Path, name: str, degrees: tuple[int, ...], dtypes: tuple[str, ...] = DTYPES) -> list[Result]:
    return list(run_case(folder, MOE, name, degrees, dtypes=dtypes).results)


def test_a_right_module_passes_at_every_degree_with_its_controls(tmp_path: Path) -> None:
    record = run_case(tmp_path, MOE, "RIGHT", (1, 2, 8), dtypes=DTYPES, fault_control=True)
    assert {(r.tp, r.dtype): r.status for r in record.results} == {
        (tp, dtype): Status.PROVED if dtype == "exact" else Status.PASS for tp in (1, 2, 8) for dtype in DTYPES
    }
    (eight,) = (r for r in record.results if (r.tp, r.dtype) == (8, "float32"))
    assert [str(call) for call in eight.ranks[5].collectives] == [
        "all_reduce [2, 8, 16] float32 over ranks 4, 5 of axis tp",
        "all_reduce [2, 8, 16] float32 over ranks 1, 3, 5, 7 of axis ep",
    ]


def test_the_rank_of_the_wrong_axis_is_found_where_it_acts(tmp_path: Path) -> None:
    for result in results(tmp_path, "OTHER_AXIS", (2, 8)):
        assert result.status in (Status.MISMATCH, Status.DIFFERENT)
        assert result.first_divergence
        assert result.first_divergence.tensor == "summand"


def test_a_sum_over_one_axis_only_is_no_replica(tmp_path: Path) -> None:
    for result in results(tmp_path, "ONE_SUM", (8,), ("exact", "float32")):
        assert result.status in (Status.DIFFERENT, Status.MISMATCH)
        replicas = next(check for check in result.checks if check.name == "replicas")
        assert "rank 2 holds" in replicas.detail
        assert "where rank 0 holds" in replicas.detail  # ranks 0 and 1 are one tp group
        assert result.first_divergence
        assert result.first_divergence.tensor == "output.0"  # the summands before it are right


def case(**fields: Any) -> Case:
    given = {"name": "mine", "reference": nn.Identity, "sharded": nn.Identity, "inputs": lambda _: (torch.ones(4),)}
    return Case(**given | fields)


GRID = {"ep": 2, "tp": 4}


def test_placements_along_axes_become_placements_over_all_ranks() -> None:
    rows, columns = {"ep": Shard(0)}, {"tp": Shard(1)}
    resolved = case(
        mesh=GRID,
        plan={"a": rows, "b": rows | columns, "c": Replicate(), "d": {("ep", "tp"): KVHeads(0, 2)}},
        output=(columns, Replicate()),
        input_placements=(rows,),
        taps={"x": {"tp": Partial()}},
    ).at(8)
    along = {"ep": on_mesh(GRID, {("ep",): Shard(0)}), "tp": on_mesh(GRID, {("tp",): Shard(1)})}
    both = on_mesh(GRID, {("ep",): Shard(0), ("tp",): Shard(1)})
    assert resolved.plan == {"a": along["ep"], "b": both, "c": Replicate(), "d": KVHeads(0, 2)}
    assert (resolved.output, resolved.input_placements) == ((along["tp"], Replicate()), (along["ep"],))
    assert resolved.taps == {"x": on_mesh(GRID, {("tp",): Partial()})}
    assert resolved.axes(8) == GRID


def test_path_patterns_and_axes_are_told_apart() -> None:
    placed = {"past.*": {"ep": Shard(0)}, "logits": Replicate()}
    resolved = case(mesh=GRID, output=placed, input_placements=placed, state=placed).at(8)
    expected = {"past.*": on_mesh(GRID, {("ep",): Shard(0)}), "logits": Replicate()}
    assert resolved.output == resolved.input_placements == resolved.state == expected
    assert case(mesh=GRID, output={("ep", "tp"): Shard(0)}).at(8).output == Shard(0)
    one = {"ep": Shard(0)}
    refused(
        lambda: case(mesh=GRID, input_placements=one).at(8),
        f"input_placements of mine is {one}; a tuple of one for each input is needed, as ({one},).",
    )


def test_without_a_mesh_there_is_one_axis_tp() -> None:
    plain = case(plan={"a": Shard(0), "b": {"tp": Shard(1)}}, output={"tp": Shard(0)}).at(4)
    assert (plain.plan, plain.output, plain.axes(4)) == ({"a": Shard(0), "b": Shard(1)}, Shard(0), {"tp": 4})


def test_the_reference_s_degree_needs_no_mesh() -> None:
    alone = case(mesh=GRID, plan={"a": {"ep": Shard(0)}}, output={"tp": Shard(0)}).at(1)
    assert (alone.plan, alone.output) == ({"a": Replicate()}, Replicate())
    assert case(mesh=lambda degree: {"ep": 4, "tp": degree // 4}, output={"ep": Shard(0)}).at(1).output == Replicate()
    assert case(mesh=lambda degree: {"ep": 8 // (degree // 8), "tp": 1}, output={"ep": Shard(0)}).at(1).output


def refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        make()


def test_a_mesh_of_another_size_is_refused_with_both_numbers() -> None:
    text = "the mesh of mine is ep 2 x tp 4 = 8 ranks, and the degree is 4: run it at --tp 8, or let the sizes follow "
    refused(lambda: case(mesh=GRID).at(4), f"{text}from the degree.")


def test_what_is_no_mesh_is_refused() -> None:
    refused(
        lambda: case(mesh=lambda degree: [degree]).at(2),
        'mesh of mine is [2]; axes and their sizes are needed, for example {"tp": 2}.',
    )
    refused(lambda: case(mesh=8), "mesh of a Case is 8; a mapping from axes to their sizes is needed.")
    refused(
        lambda: case(mesh=lambda degree: {"ep": degree // 4, "tp": 4}).at(2),
        "mesh of mine has 0 ranks along ep at degree 2; at least 1 is needed.",
    )


def test_a_plain_placement_on_several_axes_is_refused() -> None:
    text = (
        "plan of a of mine is placed as Partial(), and its mesh has the axes ep, tp: say along which, as "
        "{'tp': Partial()}, or {('ep', 'tp'): Partial()} for all ranks."
    )
    refused(lambda: case(mesh=GRID, plan={"a": Partial()}).at(8), text)
    refused(lambda: case(mesh=GRID, plan={"a": Partial()}).at(1), text)


def test_an_axis_that_the_mesh_does_not_have_is_refused() -> None:
    text = "unknown axis in taps of x of mine 'pe'. Did you mean 'tp'? Choose from: ep, tp."
    refused(lambda: case(mesh=GRID, taps={"x": {"pe": Shard(0)}}).at(8), text)
    twice = {"ep": Shard(0), ("ep", "tp"): Shard(1)}
    refused(
        lambda: case(mesh=GRID, plan={"a": twice}).at(8), "plan of a of mine is placed twice along ep: leave one out."
    )
    refused(
        lambda: case(plan={"a": {"tp": 3}}),
        "plan of a Case holds {'tp': 3}; placements are needed, for example Shard(0).",
    )


def test_a_wrong_mesh_is_refused_before_any_rank(tmp_path: Path) -> None:
    fixed = MOE + 'FIXED = dataclasses.replace(RIGHT, mesh={"ep": 4, "tp": 2})\n'
    with pytest.raises(UsageError, match="the mesh of moe is ep 4 x tp 2 = 8 ranks, and the degree is 1: "):
        run_case(tmp_path, fixed, "FIXED", (1, 8))
    assert [r.status for r in run_case(tmp_path, fixed, "FIXED", (8,)).results] == 2 * [Status.PASS]


def test_a_shard_of_another_shape_names_the_axes(tmp_path: Path) -> None:
    wrong = MOE + 'BAD = dataclasses.replace(RIGHT, plan=RIGHT.plan | {"up": {"tp": Shard(0)}})\n'
    with pytest.raises(UsageError, match=r"\{tp: Shard\(dim=0, unit=1\)\} on ep 4 x tp 2 makes shards \[4, 16, 32\]"):
        run_case(tmp_path, wrong, "BAD", (8,))


def test_the_case_of_a_degree_is_another_one() -> None:
    mine = case(mesh=lambda degree: {"ep": 2, "tp": degree // 2}, plan={"a": {"ep": Shard(0)}})
    assert mine.at(2).plan == {"a": Shard(0)}
    assert mine.at(4).plan == {"a": on_mesh({"ep": 2, "tp": 2}, {("ep",): Shard(0)})}
    assert replace(mine, plan={}).at(4).plan == {}


def test_the_page_s_example_passes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "case.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## Meshes\n.*?```python\n(.*?)```", page, flags=re.DOTALL)
    assert [r.status for r in run_case(tmp_path, example, "CASE", (1, 8)).results] == 4 * [Status.PASS]
