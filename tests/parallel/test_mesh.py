"""A mesh: which ranks stand along an axis, what it refuses, and torch's DeviceMesh of the same groups."""

from __future__ import annotations

import re
import threading

import pytest
import torch
import torch.distributed as dist

from tp_harness.errors import UnknownNameError
from tp_harness.parallel.group import Group, TorchGroup, use_group
from tp_harness.parallel.mesh import Mesh, MeshError, current_mesh, mesh_of, use_mesh


def test_the_last_axis_differs_between_neighbours() -> None:
    mesh = Mesh({"dp": 2, "ep": 2, "tp": 3}, Group(10, 12))
    assert {axis: mesh.rank(axis) for axis in mesh.axes} == {"dp": 1, "ep": 1, "tp": 1}
    assert {axis: mesh[axis].members for axis in mesh.axes} == {"dp": (4, 10), "ep": (7, 10), "tp": (9, 10, 11)}
    assert mesh.parts("ep") == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert (mesh.size("tp"), mesh["tp"].axis) == (3, "tp")


def test_every_rank_is_in_one_group_along_each_axis() -> None:
    for rank in range(12):
        mesh = Mesh({"ep": 4, "tp": 3}, Group(rank, 12))
        assert {axis: mesh[axis].members[mesh.rank(axis)] for axis in mesh.axes} == {"ep": rank, "tp": rank}
        assert mesh.rank("ep") * 3 + mesh.rank("tp") == rank


def test_sizes_that_do_not_multiply_to_the_ranks_are_refused_with_both_numbers() -> None:
    text = (
        "the mesh is ep 4 x tp 8 = 32 ranks, and the degree is 8: run it at --tp 32, or let the sizes follow from the "
        "degree."
    )
    with pytest.raises(MeshError, match=f"^{re.escape(text)}$"):
        Mesh({"ep": 4, "tp": 8}, Group(0, 8))


def test_an_axis_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown axis of the mesh 'pp'. .*Choose from: ep, tp\.$"):
        Mesh({"ep": 1, "tp": 1}, Group())["pp"]


def test_an_axis_of_all_ranks_is_the_group_itself_and_one_of_one_rank_is_the_identity() -> None:
    group = Group(2, 4)
    mesh = Mesh({"ep": 1, "tp": 4}, group)
    x = torch.ones(2)
    assert mesh["tp"] is group
    assert mesh["ep"].all_reduce(x) is mesh["ep"].all_to_all(x, 0, 0) is x
    assert group.calls == []


def test_what_subgroups_call_is_recorded_with_their_members_and_axis() -> None:
    group = Group(5, 8)
    mesh = Mesh({"ep": 2, "tp": 4}, group)
    for axis in ("tp", "ep"):
        with pytest.raises(NotImplementedError):
            mesh[axis].all_reduce(torch.ones(2, 3))
    with pytest.raises(NotImplementedError):
        group.all_gather(torch.ones(2), 0)
    assert [str(call) for call in mesh["ep"].take_calls()] == [
        "all_reduce [2, 3] float32 over ranks 4, 5, 6, 7 of axis tp",
        "all_reduce [2, 3] float32 over ranks 1, 5 of axis ep",
        "all_gather [2] float32 over 8 ranks",
    ]
    assert group.take_calls() == ()  # they share one recording
    assert [mesh.axis_of(members) for members in ((1, 5), (4, 5), (4, 5, 6, 7), ())] == ["ep", "", "tp", ""]


def test_all_to_all_needs_equal_parts() -> None:
    text = "all_to_all cuts dimension 1 of shape [2, 6] into 4 equal parts, and 6 does not divide by 4: pad it"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Group(0, 4).all_to_all(torch.ones(2, 6), 1, 0)


def test_the_innermost_mesh_is_this_threads_ambient_one() -> None:
    mesh, seen = Mesh({"ep": 2, "tp": 2}, Group(3, 4)), []
    with use_mesh(mesh) as entered:
        assert entered is mesh is current_mesh()
        thread = threading.Thread(target=lambda: seen.append(current_mesh().axes))
        thread.start()
        thread.join()
    assert seen == [{"tp": 1}]
    with use_group(Group(1, 4)) as group:
        assert (current_mesh().axes, current_mesh()["tp"]) == ({"tp": 4}, group)
        assert current_mesh() is current_mesh()
        assert mesh_of({"a": 2, "b": 2}, group) is not mesh_of({"b": 2, "a": 2}, group)


def test_torchs_device_mesh_has_the_same_groups(rank_1_of_4: None) -> None:
    mesh = Mesh({"ep": 2, "tp": 2}, TorchGroup())
    torchs = mesh.device_mesh
    assert torchs is mesh.device_mesh
    assert (torchs.mesh_dim_names, torchs.mesh.tolist()) == (("ep", "tp"), [[0, 1], [2, 3]])
    for axis in mesh.axes:
        assert torchs.get_group(axis) is mesh[axis].process_group
        assert torchs.get_local_rank(axis) == mesh.rank(axis)
        assert tuple(dist.get_process_group_ranks(torchs.get_group(axis))) == mesh[axis].members
    whole = Mesh({"ep": 1, "tp": 4}, TorchGroup()).device_mesh
    assert whole.get_group("tp") is dist.group.WORLD


def test_a_stand_in_has_a_device_mesh_too_and_without_torch_distributed_there_is_none(rank_1_of_4: None) -> None:
    torchs = Mesh({"ep": 2, "tp": 2}, Group(1, 4)).device_mesh
    assert (torchs.mesh_dim_names, torchs.mesh.tolist()) == (("ep", "tp"), [[0, 1], [2, 3]])
    dist.destroy_process_group()
    with pytest.raises(Exception, match="which the ranks of backend local do not have"):
        _ = Mesh({"ep": 2, "tp": 2}, Group(1, 4)).device_mesh
    dist.init_process_group("fake", rank=1, world_size=4)
