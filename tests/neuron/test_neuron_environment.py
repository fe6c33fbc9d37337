"""The environment of a job on NeuronCores: what it sets, what it keeps, and what it refuses in which words."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.config.divisibility import TRN1_DEGREES
from tp_harness.errors import UsageError
from tp_harness.neuron.environment import (
    BASE_PORT,
    DANGERS,
    TRN1_CORES,
    compiler_flags,
    core_range,
    dangers,
    neuron_environment,
    visible_cores,
)

degrees = st.sampled_from(TRN1_DEGREES)
blocks = degrees.flatmap(lambda n: st.tuples(st.integers(0, TRN1_CORES // n - 1).map(lambda i: i * n), st.just(n)))
words = st.text("abc-=1", max_size=8)
own_names = ("HOME", "PATH", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX", "NEURON_RT_LOG_LEVEL")
names = st.sampled_from([*own_names, "NEURON_RT_NUM_CORES", "NEURON_RT_ROOT_COMM_ID"])
users = st.dictionaries(names, st.text("x0-9:", max_size=6), max_size=5)


@settings(deadline=None)
@given(user=users, block=blocks, flags=st.lists(words.filter(lambda w: "auto-cast" not in w)).map(shlex.join))
def test_a_job_gets_its_cores_its_port_and_exact_arithmetic(
    user: dict[str, str], block: tuple[int, int], flags: str
) -> None:
    first, degree = block
    given_environment = user | {"NEURON_CC_FLAGS": flags}
    before = dict(given_environment)
    job = neuron_environment(given_environment, first_core=first, degree=degree)
    assert given_environment == before, "the user's environment is not touched"
    assert visible_cores(job["NEURON_RT_VISIBLE_CORES"]) == tuple(range(first, first + degree))
    assert job["NEURON_RT_ROOT_COMM_ID"] == f"127.0.0.1:{62182 + first}"
    assert (job["PJRT_DEVICE"], job["NEURON_RT_STOCHASTIC_ROUNDING_EN"]) == ("NEURON", "0")
    assert "--auto-cast=none" in shlex.split(job["NEURON_CC_FLAGS"])
    assert shlex.split(job["NEURON_CC_FLAGS"])[: len(shlex.split(flags))] == shlex.split(flags)
    assert not list(dangers(job))
    for name in own_names:
        assert name not in user or job[name] == user[name]
    assert neuron_environment(job, first_core=first, degree=degree) == job


@settings(deadline=None)
@given(a=blocks, b=blocks)
def test_two_jobs_share_a_port_only_where_they_would_share_a_core(a: tuple[int, int], b: tuple[int, int]) -> None:
    one, other = (neuron_environment({}, first_core=first, degree=degree) for first, degree in (a, b))
    cores = [set(visible_cores(job["NEURON_RT_VISIBLE_CORES"])) for job in (one, other)]
    same_port = one["NEURON_RT_ROOT_COMM_ID"] == other["NEURON_RT_ROOT_COMM_ID"]
    assert not same_port or cores[0] & cores[1]


@settings(deadline=None)
@given(first=st.integers(-40, 80), degree=st.integers(-2, 70), cores=st.sampled_from([2, 32]))
def test_cores_that_trn1_cannot_give_are_refused_and_no_others(first: int, degree: int, cores: int) -> None:
    fits = degree in (1, 2, 8, 32) and first >= 0 and first % degree == 0 and first + degree <= cores
    if fits:
        neuron_environment({}, first_core=first, degree=degree, cores=cores)
    else:
        with pytest.raises(UsageError):
            neuron_environment({}, first_core=first, degree=degree, cores=cores)


@settings(deadline=None)
@given(st.sets(st.integers(0, 31), min_size=1))
def test_visible_cores_are_read_however_they_are_written(cores: set[int]) -> None:
    assert visible_cores(",".join(map(str, cores))) == tuple(sorted(cores))
    assert visible_cores(f" {min(cores)} - {max(cores)} ") == tuple(range(min(cores), max(cores) + 1))


@pytest.mark.parametrize("text", ["", "-", "0-", "-3", "3-1", "a", "0,,1", "0-99999", "1.5"])
def test_odd_visible_cores_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cores and ranges are needed"):
        visible_cores(text)


@pytest.mark.parametrize(
    ("user", "first", "degree", "text"),
    [
        ({"XLA_USE_BF16": "1"}, 0, 1, "XLA_USE_BF16 is '1', which turns every float32 tensor into bfloat16"),
        ({"XLA_DOWNCAST_BF16": "True"}, 0, 1, "`unset XLA_DOWNCAST_BF16`"),
        ({"NEURON_EXTRACT_GRAPHS_ONLY": "1"}, 0, 1, "every output is zeros"),
        ({"NEURON_RT_STOCHASTIC_ROUNDING_EN": "1"}, 0, 1, "rounds at random instead of to nearest"),
        ({"NEURON_CC_FLAGS": "-O1 --auto-cast=matmult"}, 0, 1, "--auto-cast=matmult, which .* needs --auto-cast=none"),
        ({"NEURON_CC_FLAGS": "--auto-cast all"}, 0, 1, "--auto-cast=all"),
        ({"NEURON_CC_FLAGS": "--auto-cast=none --auto-cast=all"}, 0, 1, "--auto-cast=all"),
        ({"NEURON_CC_FLAGS": "--auto-cast"}, 0, 1, "--auto-cast=, which"),
        ({"NEURON_CC_FLAGS": "'-O1"}, 0, 1, "close the quotation"),
        ({"NEURON_RT_VISIBLE_CORES": "8-15"}, 0, 8, "cores 0-7 are asked for, but NEURON_RT_VISIBLE_CORES is '8-15'"),
        ({"NEURON_RT_VISIBLE_CORES": "all"}, 0, 8, "NEURON_RT_VISIBLE_CORES is 'all'"),
        ({"PJRT_DEVICE": "TPU"}, 0, 1, "PJRT_DEVICE is 'TPU'; NEURON is needed, or CPU"),
        ({}, 0, 4, "tp_degree 4 is not one that AWS supports on Trn1: 1, 2, 8 and 32 NeuronCores are"),
        ({}, 0, 16, "tp_degree 16 is not one"),
        ({}, 4, 8, "tp_degree 8 cannot start at NeuronCore 4; .* a multiple of 8, at most 24"),
        ({}, 32, 8, "cannot start at NeuronCore 32"),
    ],
)
def test_what_would_falsify_a_verdict_is_refused(user: dict[str, str], first: int, degree: int, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        neuron_environment(user, first_core=first, degree=degree)


def test_more_ranks_than_the_instance_has_cores_are_refused() -> None:
    with pytest.raises(UsageError, match="tp_degree 8 needs 8 NeuronCores; this machine has 2"):
        neuron_environment({}, first_core=0, degree=8, cores=2)


def test_its_ports_are_none_that_linux_gives_away() -> None:
    """Of an ephemeral port another connection may be the owner: ranks then hang before their first collective."""
    linux_default = range(32768, 61000)  # net.ipv4.ip_local_port_range
    assert not {BASE_PORT + core for core in range(TRN1_CORES)} & set(linux_default)


@pytest.mark.parametrize("port", [1000, 65535])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="NEURON_RT_ROOT_COMM_ID would have port"):
        neuron_environment({}, first_core=8, degree=8, base_port=port)


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
@pytest.mark.parametrize("name", [danger.name for danger in DANGERS])
def test_a_dangerous_variable_that_is_off_is_no_reason_to_refuse(name: str, value: str) -> None:
    job = neuron_environment({name: value}, first_core=0, degree=1)
    assert job.get(name, "0") == "0"


def test_what_other_launchers_left_does_not_reach_the_job() -> None:
    left = {"NEURON_RT_NUM_CORES": "32", "NEURON_PJRT_PROCESS_INDEX": "3", "NEURONCORE_NUM_DEVICES": "2"}
    assert not left.keys() & neuron_environment(left, first_core=0, degree=2).keys()


def test_the_user_s_own_choices_stay() -> None:
    own = {"NEURON_RT_EXEC_TIMEOUT": "30", "OMP_NUM_THREADS": "4", "PJRT_DEVICE": "CPU", "PATH": "/bin"}
    assert own.items() <= neuron_environment(own, first_core=0, degree=2).items()
    within = neuron_environment({"NEURON_RT_VISIBLE_CORES": "8-15"}, first_core=10, degree=2)
    assert within["NEURON_RT_VISIBLE_CORES"] == "10-11"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "--auto-cast=none --model-type=transformer"),
        ("-O1", "-O1 --auto-cast=none --model-type=transformer"),
        ("--auto-cast none", "--auto-cast none --model-type=transformer"),
        ("--auto-cast-type=bf16", "--auto-cast-type=bf16 --auto-cast=none --model-type=transformer"),
        ("--model-type=unet-inference", "--model-type=unet-inference --auto-cast=none"),
        ("--cache_dir='/a b'", "--cache_dir='/a b' --auto-cast=none --model-type=transformer"),
    ],
)
def test_compiler_flags_keep_the_user_s(user: str, expected: str) -> None:
    assert compiler_flags(user) == expected


def test_one_core_is_written_as_a_number() -> None:
    assert (core_range(3, 1), core_range(8, 8)) == ("3", "8-15")


def test_it_is_computed_without_torch() -> None:
    code = "import sys, tp_harness.neuron.environment; sys.exit('torch' in sys.modules or 'torch_xla' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
