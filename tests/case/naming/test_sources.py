"""Sources: elements of the reference are moved, and had back bit for bit; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from bits import DTYPES, random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.case.naming.rename import Renaming
from tp_harness.case.naming.sources import (
    AsItIs,
    Concat,
    Interleave,
    Item,
    Part,
    RenameError,
    Source,
    Stack,
    Transposed,
)
from tp_harness.errors import UnknownNameError, UsageError
from tp_harness.parallel.placements import same_bits

SETTINGS = settings(deadline=None, max_examples=25)


def renaming(rename: object, known: Mapping[str, torch.Tensor], prefix: str = "") -> Renaming:
    return Renaming(rename=rename, prefix=prefix, known=frozenset(known))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), dim=st.integers(-2, 1), seed=st.integers(0, 999))
@SETTINGS
def test_what_was_fused_is_had_back(dtype: str, lengths: list[int], dim: int, seed: int) -> None:
    shapes = [[n if i == dim % 2 else 3 for i in range(2)] for n in lengths]
    parts = {f"part.{i}": random_bits(tuple(shape), dtype, seed + i) for i, shape in enumerate(shapes)}
    fused = renaming({"fused": Concat(*parts, dim=dim)}, parts).tensor("fused", parts.__getitem__)
    assert same_bits(fused, torch.cat(list(parts.values()), dim))
    apart = {f"part.{i}": Part("fused", sum(lengths[:i]), n, dim=dim) for i, n in enumerate(lengths)}
    for name, part in parts.items():
        assert same_bits(renaming(apart, {"fused": fused}).tensor(name, {"fused": fused}.__getitem__), part)


@pytest.mark.parametrize("dtype", DTYPES)
@given(count=st.integers(1, 4), dim=st.integers(-2, 1), seed=st.integers(0, 999))
@SETTINGS
def test_what_was_stacked_or_interleaved_is_had_back(dtype: str, count: int, dim: int, seed: int) -> None:
    parts = {f"part.{i}.weight": random_bits((4, 3), dtype, seed + i) for i in range(count)}
    names = renaming({"stack": Stack("part.*.weight", dim=dim), "mixed": Interleave("part.*.weight", dim=dim)}, parts)
    whole = {name: names.tensor(name, parts.__getitem__) for name in ("stack", "mixed")}
    assert same_bits(whole["stack"], torch.stack(list(parts.values()), dim))
    back: dict[str, object] = {f"mixed.{i}": Part("mixed", i, dim=dim, step=count) for i in range(count)}
    again = renaming(back | {"one.*": Item("stack", dim=dim), "across": Transposed(Transposed("mixed"))}, whole)
    for i, part in enumerate(parts.values()):
        for name in (f"mixed.{i}", f"one.{i}"):
            assert same_bits(again.tensor(name, whole.__getitem__), part)
    assert same_bits(again.tensor("across", whole.__getitem__), whole["mixed"])


KNOWN = {f"layers.{i}.{name}.weight": torch.full((2, 3), float(i)) for i in range(12) for name in ("q", "k")}
for i in range(11):
    KNOWN |= {
        f"layers.0.experts.{i}.up": torch.full((2, 3), i + 0.5),
        f"layers.0.experts.{i}.gate": torch.full((2, 3), i),
    }
KNOWN |= {"head": torch.arange(6.0).view(2, 3)}


def test_stars_stand_for_numbers_in_their_order() -> None:
    names = renaming(
        {
            "blocks.*.qk.*": Concat("layers.*.q.*", "layers.*.k.*"),
            "blocks.*.experts": Stack(Concat("layers.*.experts.*.gate", "layers.*.experts.*.up")),
        },
        KNOWN,
    )
    assert names.keys("blocks.11.qk.weight") == ("layers.11.q.weight", "layers.11.k.weight")
    assert names.keys("blocks.0.experts")[:4] == tuple(
        f"layers.0.experts.{i}.{name}" for i in (0, 1) for name in ("gate", "up")
    )
    stacked = names.tensor("blocks.0.experts", KNOWN.__getitem__)
    assert stacked[:, :, 0].tolist() == [[i, i, i + 0.5, i + 0.5] for i in range(11)], "10 comes after 9"
    assert names.shape("blocks.0.experts", lambda name: KNOWN[name].shape) == (11, 4, 3)
    assert names.keys("head") == ("head",), "of its own name, where nothing is said"


def test_a_function_of_names() -> None:
    def rename(name: str) -> str | Source | None:
        return None if name == "head" else Transposed(f"layers.{name}")

    names = renaming(rename, KNOWN)
    assert names.tensor("3.q.weight", KNOWN.__getitem__).shape == (3, 2)
    assert names.source("head") == AsItIs("head")
    assert names.unused(["3.q.weight"]) == []


def test_a_prefix_is_of_the_checkpoint_alone() -> None:
    stored = {f"model.{name}": x for name, x in KNOWN.items()}
    names = renaming({"qk": Concat("layers.0.q.weight", "layers.0.k.weight")}, KNOWN, "model.")
    assert names.keys("qk") == ("model.layers.0.q.weight", "model.layers.0.k.weight")
    assert names.tensor("qk", stored.__getitem__).shape == (4, 3)


def test_a_name_of_its_own_goes_before_a_pattern() -> None:
    names = renaming({"*.weight": "head", "a.weight": "layers.0.q.weight"}, KNOWN)
    assert (names.keys("a.weight"), names.keys("b.weight")) == (("layers.0.q.weight",), ("head",))
    assert names.unused(["b.weight"]) == ["a.weight"]


REFUSED: dict[str, tuple[object, str, str]] = {
    "unknown": (
        Concat("layers.0.q.weight", "layers.0.z.weight"),
        "x",
        "unknown tensor of the reference, of which rename makes x, 'layers.0.z.weight'. Did you mean",
    ),
    "other_shapes": (
        Concat("head", "layers.0.q.weight", "long"),
        "x",
        "rename cannot make x of head [2, 3], layers.0.q.weight [2, 3], long [2, 4]: Sizes of tensors must match",
    ),
    "no_such_dimension": (Concat("head", "head", dim=2), "x", "rename cannot make x of head [2, 3], head [2, 3]: "),
    "beyond": (Part("head", 1, 2), "x", "Part(name=AsItIs(name='head'), start=1, length=2, dim=0, step=1) reaches"),
    "no_item": (Item("head", 2), "x", "head [2, 3] has no item 2."),
    "no_number": (Item("head"), "x", "Item(name='head', index=None, dim=0) needs an index, or a star for its number"),
    "no_fit": (Stack("layers.*.z"), "x", "unknown tensor of the reference, of which rename makes x, 'layers.*.z'."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str) -> None:
    rename, own, text = REFUSED[name]
    known = KNOWN | {"long": torch.zeros(2, 4)}
    with pytest.raises(UsageError) as caught:
        renaming({own: rename}, known).tensor(own, known.__getitem__)
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, (RenameError, UnknownNameError))


@pytest.mark.parametrize("given", [3, None, ["a", "b"]])
def test_something_else_is_refused(given: object) -> None:
    with pytest.raises(RenameError, match="a name of the reference is needed, or Concat"):
        Concat("a", given)  # type: ignore[arg-type]
    with pytest.raises(RenameError, match="Stack has nothing that it is made of"):
        Stack()
