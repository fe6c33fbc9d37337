"""The doctor: what it says to recorded machines, and in which words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from machines import DEVICES, HEALTHY, HOLDER, LAPTOP, TRN1, packages, release, system, with_devices, with_packages

from tp_harness.doctor.facts import Facts
from tp_harness.doctor.findings import exit_code, filesystem_of, findings
from tp_harness.neuron.sdk_packages import RELEASES, Package, is_stub, parse_dpkg_status, public_version

DPKG = """Package: aws-neuronx-runtime-lib
Status: install ok installed
Priority: optional
Version: 2.33.10.0-17e3d3a5b
Description: Neuron Runtime Library

Package: aws-neuronx-collectives
Status: deinstall ok config-files
Version: 2.33.10.0

Package: zlib1g
Status: install ok installed
Version: 1:1.3
"""


def texts(facts: Facts, level: str) -> list[str]:
    return [finding.text for finding in findings(facts) if finding.level == level]


def with_environment(facts: Facts, **environment: str) -> Facts:
    return replace(facts, environment=environment)


def test_a_laptop_is_healthy() -> None:
    assert exit_code(findings(LAPTOP)) == 0
    assert texts(LAPTOP, "warning") == []
    assert texts(LAPTOP, "note") == ["no Neuron device: ranks run on this machine's CPUs."]


def test_a_good_trn1_has_nothing_to_complain_of() -> None:
    assert texts(HEALTHY, "danger") == texts(HEALTHY, "warning") == []
    assert texts(HEALTHY, "note") == [f"the Neuron packages are those of SDK 2.31.1: {RELEASES[1].remark}."]
    assert HEALTHY.backend_reasons["neuron"] is None
    newest = replace(HEALTHY, packages=release("2.33.0"), system_packages=system("2.33.0"))
    newest = replace(newest, machine=replace(TRN1, driver="2.31.7.0"))
    assert texts(newest, "danger") == texts(newest, "warning") == []
    assert texts(newest, "note") == [f"the Neuron packages are those of SDK 2.33.0: {RELEASES[2].remark}."]


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"XLA_USE_BF16": "1"}, "XLA_USE_BF16 is '1', which turns every float32 tensor into bfloat16"),
        ({"XLA_DOWNCAST_BF16": "true"}, "`unset XLA_DOWNCAST_BF16`"),
        ({"NEURON_RT_STOCHASTIC_ROUNDING_EN": "1"}, "rounds at random instead of to nearest"),
        ({"NEURON_EXTRACT_GRAPHS_ONLY": "1"}, "every output is zeros"),
        ({"NEURON_CC_FLAGS": "--auto-cast=all"}, "verification needs --auto-cast=none"),
        ({"NEURON_CC_FLAGS": "'"}, "close the quotation"),
    ],
)
@pytest.mark.parametrize("facts", [LAPTOP, HEALTHY], ids=["laptop", "trn1"])
def test_what_would_spoil_a_verdict_is_a_danger(facts: Facts, environment: dict[str, str], text: str) -> None:
    found = findings(with_environment(facts, **environment))
    assert found[0].level == "danger"
    assert text in found[0].text
    assert exit_code(found) == 1


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"NEURON_RT_NUM_CORES": "8"}, "NEURON_RT_NUM_CORES is '8': a process takes whichever cores are free"),
        ({"NEURON_FUSE_SOFTMAX": "1"}, "fused lowering"),
        ({"XLA_DISABLE_FUNCTIONALIZATION": "1"}, "torch.split wrong"),
        ({"NXD_CPU_MODE": "1"}, "run on the CPU"),
        ({"NEURON_LOGICAL_NC_CONFIG": "2"}, "before Trn2"),
        ({"NEURON_PLATFORM_TARGET_OVERRIDE": "trn2"}, "will not load on Trn1"),
        ({"NEURON_RT_VISIBLE_CORES": "32-33"}, "this machine has no core 32: 'Could not open the ndX'"),
        ({"NEURON_RT_VISIBLE_CORES": "all"}, "cores and ranges are needed"),
    ],
)
def test_what_will_not_work_is_a_warning(environment: dict[str, str], text: str) -> None:
    facts = with_environment(HEALTHY, **environment)
    assert len(texts(facts, "warning")) == 1
    assert text in texts(facts, "warning")[0]
    assert exit_code(findings(facts)) == 0


def test_a_variable_that_is_off_or_right_is_nothing() -> None:
    off = {"NEURON_FUSE_SOFTMAX": "0", "XLA_USE_BF16": "0", "NEURON_CC_FLAGS": "--auto-cast=none -O1"}
    assert len(findings(with_environment(HEALTHY, **off, NEURON_RT_VISIBLE_CORES="0-7"))) == 1


def test_placeholders_of_the_public_index_are_named() -> None:
    stub = Package(name="neuronx-distributed", version="0.1", stub=True)
    [text] = texts(with_packages(LAPTOP, {"neuronx-distributed": stub}), "warning")
    assert text.startswith("neuronx-distributed 0.1 is the public index's placeholder and holds no code; uninstall it")
    facts = with_packages(HEALTHY, {"neuronx-cc": Package(name="neuronx-cc", version="1.0.post1", stub=True)})
    assert (facts.backend_reasons["neuron"] or "").startswith("neuronx-cc 1.0.post1 is the public index's placeholder")


@pytest.mark.parametrize("version", ["2.13.3.0", "2.14.3.0+1a2b", "2.14"])
def test_torchneuron_is_told_from_the_torch_neuronx_on_torch_xla(version: str) -> None:
    facts = with_packages(HEALTHY, packages(torch_neuronx=version))
    [text] = texts(facts, "warning")
    assert text == f"{facts.backend_reasons['neuron']}."
    assert text.startswith(
        f"torch-neuronx {version} is TorchNeuron, the native one, which runs on Trn2 and Trn3 alone;"
    )
    assert "for Trn1 install 2.9.0.2.15.32035, the last that is built on torch-xla, from AWS's Neuron" in text


@pytest.mark.parametrize(
    ("name", "version", "has_code", "stub"),
    [
        ("neuronx-cc", "1.0.post1", True, True),
        ("neuronx-distributed", "0.1", True, True),
        ("neuronx-distributed", "0.17.26814+abc", True, False),
        ("neuronx-distributed", "0.17.26814", False, True),
        ("nki", "0.0.1", True, True),
        ("nki", "0.2.0", True, False),
        ("libneuronxla", "2.2.15515.0", True, False),
        ("torch", "0.1", False, False),
    ],
)
def test_a_placeholder_is_told_by_its_version_or_its_emptiness(
    name: str, version: str, has_code: bool, stub: bool
) -> None:
    assert is_stub(name, version, has_code=has_code) is stub


def test_packages_of_two_releases_are_told_apart() -> None:
    mixed = with_packages(HEALTHY, packages(neuronx_cc="2.23.6484.0+ab"))
    [text] = texts(mixed, "warning")
    assert "of no one SDK known to work on Trn1 (2.28.1, 2.31.1, 2.33.0)" in text
    both = "torch-neuronx 2.9.0.2.15.32035+ab12 (SDK 2.31.1, 2.33.0); neuronx-cc 2.23.6484.0+ab (SDK 2.28.1)"
    assert both in text
    later = with_packages(HEALTHY, packages(neuronx_cc="2.27.5334.0"))
    assert "neuronx-cc 2.27.5334.0 (none of them)" in texts(later, "warning")[0]


def test_the_older_release_is_known_and_wants_an_older_python() -> None:
    facts = replace(HEALTHY, packages=release("2.28.1"), python="3.13.1", machine=replace(TRN1, driver=""))
    facts = replace(facts, system_packages=system("2.28.1"))
    assert texts(facts, "note") == [f"the Neuron packages are those of SDK 2.28.1: {RELEASES[0].remark}."]
    assert texts(facts, "warning") == ["Python is 3.13.1; SDK 2.28.1 is built for 3.10, 3.11, 3.12."]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (with_packages(HEALTHY, packages(torch="2.13.0")), "torch 2.13.0 and torch-xla 2.9.1+ab12 do not fit"),
        (with_packages(HEALTHY, packages(torch="2.11.0", torch_xla="2.11.0")), "line for Trn2 and newer"),
        (replace(HEALTHY, packages=release("2.31.1")), "0.10.18399+ab12 no longer supports Trn1"),
        (replace(HEALTHY, libc="glibc 2.34"), "glibc 2.34 cannot load torch-xla"),
        (replace(HEALTHY, open_files=1024), "a process may open 1024 files"),
        (
            replace(HEALTHY, system_packages={k: v for k, v in system("2.31.1").items() if "coll" not in k}),
            "aws-neuronx-collectives is not installed",
        ),
        (replace(HEALTHY, machine=replace(TRN1, driver="2.26.10.0")), "the loaded driver is 2.26.10.0, the installed"),
        (
            replace(HEALTHY, system_packages=system("2.31.1") | packages(aws_neuronx_runtime_lib="2.30.51.0-1")),
            "driver 2.29.0.0 needs aws-neuronx-runtime-lib 2.33 or newer; 2.30.51.0 is installed",
        ),
        (with_devices(HEALTHY, *DEVICES[:15]), "15 of the 16 Neuron devices of a trn1.32xlarge"),
        (
            with_devices(HEALTHY, *DEVICES, instance_type="trn2.48xlarge"),
            "the instance is trn2.48xlarge; what",
        ),
        (
            with_devices(HEALTHY, *DEVICES[:15], replace(DEVICES[15], accessible=False)),
            "this user may not open /dev/neuron15",
        ),
        (
            with_devices(HEALTHY, *DEVICES[:13], *(replace(device, holders=(HOLDER,)) for device in DEVICES[13:])),
            "process 42 (python a.py) holds the devices of cores 26-31; a job there may fail",
        ),
        (replace(HEALTHY, machine=replace(TRN1, notes=("neuron-ls failed: no",))), "neuron-ls failed: no."),
        (
            replace(
                HEALTHY,
                environment={"NEURON_CC_FLAGS": "--auto-cast=none --cache_dir=/home/u/cache"},
                mounts="/dev/a / ext4 rw 0 0\nfs:/h /home nfs4 rw 0 0\n",
            ),
            "the compile cache /home/u/cache lies on nfs4",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_each_obstacle_is_a_sentence(facts: Facts, text: str) -> None:
    assert len(texts(facts, "warning")) == 1
    assert text in texts(facts, "warning")[0]
    assert exit_code(findings(facts)) == 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/u", "nfs4"), ("/homes", "ext4"), ("/home", "nfs4"), ("/", "ext4")],
)
def test_a_path_lies_on_its_deepest_mount(path: str, kind: str) -> None:
    assert filesystem_of(path, "/dev/a / ext4 rw 0 0\nfs:/h /home nfs4 rw 0 0\nodd\n") == kind
    assert filesystem_of(path, "") == ""


def test_debian_s_list_of_packages() -> None:
    found = parse_dpkg_status(DPKG)
    assert [(p.name, p.version) for p in found.values()] == [("aws-neuronx-runtime-lib", "2.33.10.0-17e3d3a5b")]


def test_debian_revisions_and_local_suffixes_do_not_hide_a_release() -> None:
    assert Package(name="aws-neuronx-runtime-lib", version="2.33.10.0-17e3d3a5b").releases == ("2.31.1",)
    assert public_version("2.23.6484.0+3b612583") == "2.23.6484.0"
    assert Package(name="torch", version="2.9.1+cpu").releases == ("2.28.1", "2.31.1", "2.33.0")
    assert Package(name="torch", version="2.90.1").releases == ()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (LAPTOP, "torch-xla is not installed"),
        (with_packages(LAPTOP, packages(torch_xla="2.9.0")), "no Neuron device was found"),
        (with_devices(HEALTHY, replace(DEVICES[0], accessible=False)), "this user may not open /dev/neuron0"),
        (replace(HEALTHY, packages=packages(torch="2.9.0", torch_xla="2.9.0")), "torch-neuronx is not installed"),
        (replace(HEALTHY, packages={}), "torch is not installed"),
    ],
)
def test_why_the_neuron_backend_cannot_run(facts: Facts, reason: str) -> None:
    assert (facts.backend_reasons["neuron"] or "").startswith(reason)


def test_without_a_device_the_neuron_path_runs_where_torch_xla_is() -> None:
    facts = with_environment(with_packages(LAPTOP, packages(torch_xla="2.9.0")), PJRT_DEVICE="CPU")
    assert facts.backend_reasons["neuron"] is None
