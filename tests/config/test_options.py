"""Options: what is decided for the user, one sentence per mistake, and the frozen list of flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tp_harness import cli
from tp_harness.commands import verify
from tp_harness.config.dtypes import DEFAULT_DTYPES
from tp_harness.config.options import INIT_NAMES, Options, as_record, resolve
from tp_harness.errors import UnknownNameError, UsageError
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.models.gpt_oss.components import COMPONENTS
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.prepare.random_weights import INITS

FLAGS = {
    "what": "component layer depth case model checkpoint init kernels batch seq",
    "where": "tp ep cp backend timeout",
    "how strict": "dtype seed draws repeats fault no-fault-control",
    "output": "out resume",
}


def options_from(*arguments: str) -> Options:
    """What `tp-harness verify ARGUMENTS` asks for."""
    return verify.options_of(cli._parser().parse_args(["verify", *arguments]))


def test_flags_are_frozen() -> None:
    """A new flag is a decision: variation belongs into cases."""
    parser = argparse.ArgumentParser(add_help=False)
    verify.add_verify_options(parser)
    groups = {g.title: [action.option_strings for action in g._group_actions] for g in parser._action_groups[2:]}
    assert groups == {title: [[f"--{flag}"] for flag in flags.split()] for title, flags in FLAGS.items()}
    assert len(parser._actions) == 23


def test_no_flags_is_the_default_of_every_option() -> None:
    assert options_from() == Options()


def test_flags_reach_their_options() -> None:
    line = (
        "--component mlp --component rope --tp 8,2 --ep 2 --cp 1 --model gpt-oss-20b --batch 3 --seq 7 --layer 5 "
        "--layer 4 --depth 3 "
        "--dtype bfloat16 --backend gloo --seed 9 --draws 2 --init constant --kernels nki --repeats 4 --checkpoint c "
        "--fault f --no-fault-control --out o --timeout 1.5"
    )
    expected = Options(
        components=("mlp", "rope"),
        degrees=(8, 2),
        ep=2,
        cp=1,
        model="gpt-oss-20b",
        batch=3,
        seq=7,
        layers=(5, 4),
        depth=3,
        dtypes=("bfloat16",),
        backend="gloo",
        seed=9,
        draws=2,
        init="constant",
        kernels="nki",
        repeats=4,
        fault="f",
        fault_control=False,
        checkpoint=Path("c"),
        out=Path("o"),
        timeout=1.5,
    )
    assert options_from(*line.split()) == expected
    assert options_from("--case", "my.py:CASE", "--case", "b.py").case == ("my.py:CASE", "b.py")
    default = dataclasses.asdict(Options())
    assert {k for k, v in dataclasses.asdict(expected).items() if v == default[k]} == {"case"}  # all others were tried


def test_names_kept_apart_from_torch_are_those_of_the_registries() -> None:
    assert tuple(COMPONENTS) == tuple(FAMILY.components)
    assert tuple(INITS) == INIT_NAMES


def test_defaults_of_tiny() -> None:
    resolved = resolve(Options())
    both = {"attention": (0, 1), "transformer_block": (0, 1)}
    assert resolved.targets == tuple((name, layer) for name in FAMILY.run_by_default for layer in both.get(name, (0,)))
    assert (resolved.degrees, resolved.dtypes) == ((1, 2, 8, 32), DEFAULT_DTYPES)
    assert (resolved.batch, resolved.seq, resolved.draws, resolved.seed) == (2, 40, 2, 0)
    assert (resolved.init, resolved.model, resolved.case, resolved.checkpoint) == (
        "discriminating",
        PRESETS["tiny"],
        (),
        "",
    )
    assert resolved.seq > resolved.model.sliding_window


def test_defaults_of_a_real_model() -> None:
    resolved = resolve(Options(model="gpt-oss-20b"))
    both = {"attention": (0, 1)}
    assert resolved.targets == tuple(
        (name, layer) for name in FAMILY.components if name != "decode" for layer in both.get(name, (0,))
    )
    assert (resolved.batch, resolved.seq, resolved.draws) == (1, 160, 1)
    assert resolved.seq > resolved.model.sliding_window


def test_what_is_given_is_kept() -> None:
    given = Options(components=("mlp", "rmsnorm"), degrees=(2,), layers=(1,), batch=3, seq=5, draws=2, seed=2**31 - 1)
    resolved = resolve(given)
    assert resolved.targets == (("mlp", 1), ("rmsnorm", 0))
    assert (resolved.degrees, resolved.batch, resolved.seq, resolved.draws) == ((2,), 3, 5, 2)
    assert resolve(Options(case="my.py:CASE", degrees=(3,))).targets == (("case", 0),)  # no gpt-oss preflight


def test_cases_may_be_one_or_several() -> None:
    cases = [resolve(Options(case=case)).case for case in (None, (), "a.py", "a.py:A", ["a.py", "b.py:B"])]
    assert cases == [(), (), ("a.py",), ("a.py:A",), ("a.py", "b.py:B")]


def test_what_a_case_passes_over_is_not_recorded_as_used() -> None:
    built_in, own = (as_record(resolve(options)) for options in (Options(), Options(case="a.py")))
    assert built_in.keys() - own.keys() == {"model", "model_name", "batch", "seq", "depth"}
    assert own.keys() <= built_in.keys()


def test_a_resolved_run_has_nothing_open_and_is_json() -> None:
    resolved = resolve(Options())
    assert None not in dataclasses.astuple(resolved)
    assert json.loads(json.dumps(as_record(resolved), allow_nan=False))["model"]["hidden_size"] == 96


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "component": (
        {"components": ("atention",)},
        "unknown component 'atention'. Did you mean 'attention'? Choose from: rmsnorm, rope, attention, mlp, "
        "transformer_block, embedding, unembedding, transformer, decode.",
    ),
    "component-nothing_near": (
        {"components": ("xyz",)},
        f"unknown component 'xyz'. Choose from: {', '.join(FAMILY.components)}.",
    ),
    "component-twice": ({"components": ("mlp", "rope", "mlp")}, "a component is named twice: mlp, rope, mlp."),
    "dtype": (
        {"dtypes": ("bf16",)},
        "unknown dtype 'bf16'. Did you mean 'bfloat16'? Choose from: exact, float64, float32, bfloat16, float16.",
    ),
    "other-dtype": (
        {"dtypes": ("float32", "half")},
        "--dtype is 'half'; there are limits for exact, float64, float32, bfloat16 and float16 alone: choose among "
        "them.",
    ),
    "narrow-dtype": (
        {"dtypes": ("float8_e4m3fn",)},
        "--dtype is 'float8_e4m3fn'; there are limits for exact, float64, float32, bfloat16 and float16 alone: choose "
        "among them.",
    ),
    "exact-neuron": (
        {"dtypes": ("exact", "float32"), "backend": "neuron"},
        "--dtype is exact, but --backend is neuron: exact arithmetic runs eager code on the CPU; choose --backend gloo "
        "or local, or leave exact out.",
    ),
    "exact-xla": (
        {"dtypes": ("exact",), "backend": "xla", "kernels": "nki"},
        "--dtype is exact, but --backend is xla: exact arithmetic runs eager code on the CPU; choose --backend gloo "
        "or local, or leave exact out.",
    ),
    "exact-nki": (
        {"dtypes": ("exact",), "kernels": "nki"},
        "--dtype is exact, but --kernels is nki: exact arithmetic runs eager code on the CPU; choose --kernels torch, "
        "or leave exact out.",
    ),
    "float64-neuron": (
        {"dtypes": ("float64",), "backend": "neuron"},
        "--dtype is float64, but --backend is neuron: a NeuronCore does not compute in float64; choose --backend gloo "
        "or local, or leave float64 out.",
    ),
    "float64-nki": (
        {"dtypes": ("float64",), "kernels": "nki"},
        "--dtype is float64, but --kernels is nki: no kernel computes in float64; choose --kernels torch, or leave "
        "float64 out.",
    ),
    "dtype-twice": ({"dtypes": ("float32", "float32")}, "a dtype is named twice: float32, float32."),
    "init": ({"init": "zeros"}, "unknown init 'zeros'. Choose from: discriminating, constant, tied."),
    "repeats": ({"repeats": -1}, "--repeats is -1; a number between 0 and 1000 is needed."),
    "kernels": ({"kernels": "nkl"}, "unknown kernels 'nkl'. Did you mean 'nki'? Choose from: torch, nki."),
    "model": (
        {"model": "tony"},
        "unknown model 'tony'. Did you mean 'tiny'? Choose from: tiny, gpt-oss-20b, gpt-oss-120b, path/to/config.json.",
    ),
    "batch": ({"batch": 0}, "--batch is 0; a number between 1 and 1048575 is needed."),
    "seq": ({"seq": -5}, "--seq is -5; a number between 1 and 1048575 is needed."),
    "seq-huge": ({"seq": 2**20}, "--seq is 1048576; a number between 1 and 1048575 is needed."),
    "draws": ({"draws": 0}, "--draws is 0; a number between 1 and 1048575 is needed."),
    "timeout": ({"timeout": 0.0}, "--timeout is 0; a positive number of seconds is needed."),
    "timeout-nan": ({"timeout": float("nan")}, "--timeout is nan; a positive number of seconds is needed."),
    "timeout-inf": ({"timeout": float("inf")}, "--timeout is inf; a positive number of seconds is needed."),
    "seed": ({"seed": -1}, "--seed is -1; it must be between 0 and 2147483647."),
    "seed-huge": ({"seed": 2**31}, "--seed is 2147483648; it must be between 0 and 2147483647."),
    "tp-none": ({"degrees": ()}, "--tp is []; distinct degrees are needed, for example 1,2,8,32."),
    "tp-twice": ({"degrees": (2, 2)}, "--tp is [2, 2]; distinct degrees are needed, for example 1,2,8,32."),
    "tp-zero": (
        {"degrees": (0,)},
        "--tp holds 0; a degree lies between 1 and 256, as ranks on CPUs.",
    ),
    "tp-257": (
        {"degrees": (1, 64, 256, 257)},
        "--tp holds 257; a degree lies between 1 and 256, as ranks on CPUs.",
    ),
    "tp-3": (
        {"degrees": (1, 3), "components": ("attention",)},
        "tp_degree 3 does not divide num_attention_heads 64 and num_key_value_heads 8 (neither divides the other). "
        "Of the Trn1 degrees, 1, 2, 8, 32 would; choose with --tp.",
    ),
    "layer": ({"layers": (0, 2)}, "--layer is 2; tiny has layers 0 to 1."),
    "layer-negative": ({"layers": (-1,)}, "--layer is -1; tiny has layers 0 to 1."),
    "layer-unlayered": ({"components": ("rope",), "layers": (24,)}, "--layer is 24; tiny has layers 0 to 1."),
    "layer-twice": ({"layers": (1, 1)}, "--layer is [1, 1]; distinct layers are needed."),
    "depth-none": ({"depth": 0}, "--depth is 0; a number between 1 and 2 is needed, the layers of tiny."),
    "depth-beyond": (
        {"depth": 25, "model": "gpt-oss-20b"},
        "--depth is 25; a number between 1 and 24 is needed, the layers of gpt-oss-20b.",
    ),
    "depth-of-others": (
        {"depth": 1, "components": ("mlp",)},
        "--depth is 1, but only the transformer has one; add --component transformer.",
    ),
    **{
        f"case-and-{name}": (
            {"case": "my.py:CASE", name: value},
            f"a Case brings its own modules and inputs, which {flag} would not change; leave it out beside --case.",
        )
        for name, value, flag in (
            ("components", ("mlp",), "--component"),
            ("layers", (0,), "--layer"),
            ("depth", 1, "--depth"),
            ("model", "tiny", "--model"),
            ("batch", 2, "--batch"),
            ("seq", 40, "--seq"),
        )
    },
    "case-and-two": (
        {"case": "my.py:CASE", "batch": 2, "seq": 4},
        "a Case brings its own modules and inputs, which --batch and --seq would not change; leave them out beside "
        "--case.",
    ),
    "checkpoint-and-init": (
        {"checkpoint": Path("c"), "init": "constant"},
        "--init is constant, but --checkpoint gives the weights; leave one of them out.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_option_is_refused_in_one_sentence(name: str) -> None:
    values, text = REFUSED[name]
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        resolve(Options(**values))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tp", "1,two"), "--tp is '1,two'; numbers separated by commas are needed, as 1,2,8,32."),
        (("--tp", ""), "--tp is ''; numbers separated by commas are needed, as 1,2,8,32."),
        (("--seq", "x"), "argument --seq: invalid int value: 'x' (see `tp-harness verify --help`)."),
        (("--seq",), "argument --seq: expected one argument (see `tp-harness verify --help`)."),
        (("--sequence", "4"), "unknown option --sequence. Did you mean --seq? `tp-harness verify --help` lists all."),
    ],
    ids=["tp-word", "tp-empty", "seq-word", "seq-nothing", "unknown_flag"],
)
def test_a_command_line_that_cannot_be_read_is_a_usage_error(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        options_from(*arguments)


def test_list_names_what_it_can_list() -> None:
    text = "unknown list 'component'. Did you mean 'components'? Choose from: components, faults, backends, "
    text += "kernels, models."
    arguments = cli._parser().parse_args(["list", "component"])
    with pytest.raises(UnknownNameError, match=f"^{re.escape(text)}$"):
        arguments.run(arguments)
