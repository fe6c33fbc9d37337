"""Cases of several calls: attention whose keys and values live in the module, or travel as outputs and inputs."""

DECODERS = '''
import torch
from torch import nn
from tp_harness import Call, Case, Output, Replicate, Same, Shard, current_group

HEADS, DIM, HIDDEN, SLOTS = 8, 4, 12, 10

def attend(q, keys, values, last):
    """q (batch, tokens, heads, dim) sees slots up to its own position; `last` (tokens,)."""
    scores = torch.einsum("bthd,bshd->bhts", q, keys.to(q.dtype)) * DIM**-0.5
    hidden = torch.arange(keys.shape[1]) > last[:, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, values.to(q.dtype)).flatten(2)

class Projections(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.heads = HEADS // ranks
        self.q, self.k, self.v = (nn.Linear(HIDDEN, self.heads * DIM, bias=False) for _ in range(3))
        self.o = nn.Linear(self.heads * DIM, HIDDEN, bias=False)

    def project(self, x):
        return (f(x).unflatten(-1, (self.heads, DIM)) for f in (self.q, self.k, self.v))

    def sum(self, x):
        return x

class Kept(Projections):
    """Keys and values are buffers, whose free slots hold what was there before; `length` is an attribute."""

    def __init__(self, ranks=1):
        super().__init__(ranks)
        source = torch.Generator().manual_seed(0)
        rank = current_group().rank if ranks > 1 else 0
        for name in ("keys", "values"):
            stale = torch.randn(2, SLOTS, HEADS, DIM, generator=source)
            self.register_buffer(name, stale[:, :, rank * self.heads :][:, :, : self.heads].clone(), persistent=False)
        self.length = torch.zeros((), dtype=torch.int64)

    def forward(self, x):
        q, k, v = self.project(x)
        at = self.length + torch.arange(x.shape[1])
        self.write(k, v, at)
        self.length += x.shape[1]
        return self.sum(self.o(attend(q, self.keys, self.values, self.seen(at))))

    def write(self, k, v, at):
        self.keys[:, at], self.values[:, at] = k.to(self.keys.dtype), v.to(self.keys.dtype)

    def seen(self, at):
        return at

class Travelling(Projections):
    """Returns its keys and values, to be given to the next call."""

    def forward(self, x, past=None):
        q, k, v = self.project(x)
        before = past["keys"].shape[1] if past else 0
        keys, values = self.joined(past, k, v)
        at = before + torch.arange(x.shape[1])
        return {"y": self.sum(self.o(attend(q, keys, values, at))), "past": {"keys": keys, "values": values}}

    def joined(self, past, k, v):
        return (torch.cat((past["keys"], k), 1), torch.cat((past["values"], v), 1)) if past else (k, v)

class Ranks:
    def __init__(self):
        super().__init__(current_group().size)

    def sum(self, x):
        return current_group().all_reduce(x)

class KeptRanks(Ranks, Kept): pass
class TravellingRanks(Ranks, Travelling): pass

class OneLate(KeptRanks):
    def write(self, k, v, at):
        super().write(k, v, (at + (len(at) == 1)).clamp(max=SLOTS - 1))

class Overwrites(KeptRanks):
    """A slot that nobody reads is written, in the first call."""
    def write(self, k, v, at):
        super().write(k, v, at)
        if len(at) > 1:
            self.keys[1, SLOTS - 1] = 0.5

class FirstRow(KeptRanks):
    def write(self, k, v, at):
        rows = slice(0, 1) if len(at) == 1 else slice(None)
        self.keys[rows, at], self.values[rows, at] = k[rows].to(self.keys.dtype), v[rows].to(self.keys.dtype)

class Half(KeptRanks):
    """The cache is kept in another dtype from the first call on."""
    def write(self, k, v, at):
        self.keys, self.values = self.keys.half(), self.values.half()
        super().write(k, v, at)

def unseen(self, at):
    return at - 1 if len(at) == 1 else at

class UnseenByBoth(Kept):
    seen = unseen

class UnseenByRanks(KeptRanks):
    seen = unseen

def mixed(self, past, k, v):
    return Travelling.joined(self, past, k + k.mean(0), v)

class MixedByBoth(Travelling):
    joined = mixed

class MixedByRanks(TravellingRanks):
    joined = mixed

class Forgets(TravellingRanks):
    def joined(self, past, k, v):
        return super().joined(past and {name: x[:, 1:] for name, x in past.items()}, k, v)

PLAN = {f"{n}.weight": Shard(0) for n in "qkv"} | {"o.weight": Shard(1)}

def x(generator, tokens):
    return torch.randn(2, tokens, HIDDEN, generator=generator)

TOKENS = {"prefill": 4, "decode.0": 1, "chunk": 3, "decode.1": 1}

def in_parts_and_at_once(generator):
    parts = {name: x(generator, count) for name, count in TOKENS.items()}
    at_once = Call(torch.cat([*parts.values()], 1)).from_start()
    return {name: Call(part) for name, part in parts.items()} | {"all": at_once}

def kept(sharded, reference=Kept):
    state = {"keys": Shard(2), "values": Shard(2), "length": Replicate()}
    same = (Same("all", tuple(TOKENS), dim=1),)
    calls = in_parts_and_at_once
    return Case(name="kept", reference=reference, sharded=sharded, plan=PLAN, calls=calls, state=state, same=same)

def prompt_and_rows(generator):
    prompt, token = x(generator, 4), x(generator, 1)
    return {
        "prefill": Call(prompt),
        "decode.0": Call(token, past=Output("prefill", "past")),
        "decode.1": Call(x=token, past={name: Output("decode.0", f"past.{name}") for name in ("keys", "values")}),
        "row.0": Call(prompt[:1]),
        "row.1": Call(prompt[1:]),
    }

def travelling(sharded, reference=Travelling):
    return Case(
        name="travelling", reference=reference, sharded=sharded, plan=PLAN, calls=prompt_and_rows,
        output={"past.*": Shard(2)}, same=(Same("prefill", ("row.0", "row.1"), dim=0, path="y"),),
    )

KEPT, TRAVELLING = kept(KeptRanks), travelling(TravellingRanks)
ONE_LATE, UNSEEN, OVERWRITES, FIRST_ROW, HALF = map(kept, (OneLate, UnseenByRanks, Overwrites, FirstRow, Half))
FORGETS = travelling(Forgets)
UNSEEN_BY_BOTH, MIXED_BY_BOTH = kept(UnseenByRanks, UnseenByBoth), travelling(MixedByRanks, MixedByBoth)
UNSAID = Case(
    name="kept", reference=Kept, sharded=KeptRanks, plan=PLAN, calls=in_parts_and_at_once,
    same=(Same("all", ("prefill", "decode.7"), dim=1),),
)
ONCE = Case(
    name="once", reference=Kept, sharded=KeptRanks, plan=PLAN, inputs=lambda g: (x(g, 3),),
    state={"keys": Shard(2), "values": Shard(2)},
)
NO_STATE = Case(
    name="once", reference=Kept, sharded=KeptRanks, plan=PLAN, inputs=lambda g: (x(g, 3),), state={"kyes": Shard(2)},
)
'''
