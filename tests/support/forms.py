"""Cases whose modules take and return other things than tensors in a tuple, each right and with a mistake."""

FORMS = '''
import dataclasses
from collections import OrderedDict
from typing import NamedTuple
import torch
from torch import nn
from tp_harness import Call, Case, OnRank, Replicate, Shard, current_group

class MLP(nn.Module):
    """y = down(relu(up(x) * gain)); `form` makes of y what is returned."""

    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks), nn.Linear(64 // ranks, 20, bias=False)

    def forward(self, x, gain=1.0, **rest):
        h = torch.relu(self.up(x) * gain)
        return self.form(self.sum(self.down(h)), h)

    def form(self, y, h):
        return y

    def sum(self, x):
        return x

@dataclasses.dataclass
class Step:
    logits: torch.Tensor
    past: tuple
    loss: float = 0.0
    note: str = "text"

class Pair(NamedTuple):
    key: torch.Tensor
    value: torch.Tensor

class Keeper:
    """An object of a library, as a cache is."""

    def __init__(self, *tensors):
        self.layers, self.me = list(tensors), self

def x_of(generator, *shape):
    return torch.randn(*(shape or (2, 16, 12)), generator=generator)

def pair(form, wrong=lambda self, y, h: self.form(y, h), *, inputs=lambda g: (x_of(g),), forward=None, **fields):
    class Reference(MLP):
        pass
    Reference.form = form
    if forward:
        Reference.forward = forward
    class Sharded(Reference):
        def __init__(self):
            super().__init__(current_group().size)
        def sum(self, x):
            return current_group().all_reduce(x)
    class Wrong(Sharded):
        pass
    Wrong.form = wrong
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    fields |= {"name": "form", "reference": Reference, "plan": plan, "inputs": inputs}
    return [Case(sharded=sharded, **fields) for sharded in (Sharded, Wrong)]

DICT, DICT_WRONG = pair(
    lambda self, y, h: OrderedDict(logits=y, hidden=h),
    lambda self, y, h: OrderedDict(logits=y, hidden=h.roll(1, -1)),
    output={"hidden": Shard(-1)},
)
NESTED, NESTED_WRONG = pair(
    lambda self, y, h: Step(y, (Pair(h, h * 2), [None, h * 3]), 0.5),
    lambda self, y, h: Step(y, (Pair(h, h * 2), [None, h * 4]), 0.5),
    output={"past.*": Shard(-1)},
)
NUMBER, NUMBER_WRONG = pair(lambda self, y, h: Step(y, ()), lambda self, y, h: Step(y, (), 0.25))
OBJECT, OBJECT_WRONG = pair(
    lambda self, y, h: (y, Keeper(h, y * 2)), lambda self, y, h: (y, Keeper(h, y * 3)), output={"1.layers.0": Shard(-1)}
)
WHOLE, WHOLE_WRONG = pair(
    lambda self, y, h: (y, y.argmax(-1), y > 0), lambda self, y, h: (y, y.argmax(-1) + 1, y > 0),
)
COMPLEX, COMPLEX_WRONG = pair(
    lambda self, y, h: torch.view_as_complex(y.float().unflatten(-1, (-1, 2)).contiguous()),
    lambda self, y, h: torch.view_as_complex(y.float().unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj(),
)
ZERO, ZERO_WRONG = pair(lambda self, y, h: (y, y * 0), lambda self, y, h: (y, y * 1e-3))
EIGHT, EIGHT_WRONG = pair(
    lambda self, y, h: (y, y.to(torch.float8_e4m3fn)), lambda self, y, h: (y, (y * 1.5).to(torch.float8_e4m3fn)),
)
KWARGS, KWARGS_WRONG = pair(
    lambda self, y, h: y, lambda self, y, h: y * 1.5,
    inputs=lambda g: {"gain": torch.rand(1, generator=g) + 1, "x": x_of(g), "mode": "fast", "mask": None},
)
SHARED, SHARED_WRONG = pair(
    lambda self, y, h: y, lambda self, y, h: y + 0.5,
    inputs=lambda g: Call({"ids": x_of(g), "keep": (Keeper(x_of(g, 64)), 3)}),
    input_placements={"0.keep.*": Shard(0)},
    forward=lambda self, given: self.form(
        self.sum(self.down(torch.relu(self.up(given["ids"])) * given["keep"][0].layers[0] * given["keep"][1])), None
    ),
)
FIRST, FIRST_WRONG = pair(
    lambda self, y, h: (y if current_group().rank == 0 else None, h),
    lambda self, y, h: (y * 1.5 if current_group().rank == 0 else None, h),
    output=(OnRank(), Shard(-1)),
)
NOWHERE, NOWHERE_WRONG = pair(
    lambda self, y, h: y if current_group().rank == current_group().size - 1 else None,
    lambda self, y, h: y if current_group().rank == 0 else None,
    output=OnRank(-1),
)
LIST, LIST_WRONG = pair(lambda self, y, h: [y, {"h": h}], lambda self, y, h: [y, {"x": h}], output={"1.h": Shard(-1)})
'''
WRONG = {  # the reason of each mistake
    "DICT": "output.hidden",
    "NESTED": "output.past.1.1",
    "NUMBER": "output.loss",
    "OBJECT": "output.1.layers.1",
    "WHOLE": "32 of 32 elements ",
    "COMPLEX": "output.0",
    "ZERO": "output.1",
    "EIGHT": "output.1",
    "KWARGS": "output.0",
    "SHARED": "output.0",
    "FIRST": "output.0",
    "NOWHERE": "rank 0 gave 1 outputs instead of 0",
    "LIST": "rank 0 left no output.1.h, which the reference has; it left output.1.x",
}
