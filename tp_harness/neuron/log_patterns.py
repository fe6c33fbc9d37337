"""What the Neuron runtime and compiler print when something is wrong, and what a user should do then. No torch.

Patterns are data. Sources: AWS's runtime and training troubleshooting guides, and the public issues named beside the
recorded lines in tests/neuron/test_log_patterns.py. A pattern holds what identifies an error and nothing that varies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MOST_HEAD, _MOST_TAIL = 1 << 18, 1 << 20  # bytes of a log that are looked at: the runtime may log for hours
_MOST_SENTENCES = 2


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One kind of trouble.

    Args:
        name: how tests and documents call it.
        pattern: searched for in a log; its named groups fill the sentence.
        sentence: what happened, and the remedy.
        fatal: False for what a run usually survives; it explains a timeout and nothing else.
        general: says only that something failed: reported only where no other symptom is.
    """

    name: str
    pattern: str
    sentence: str
    fatal: bool = True
    general: bool = False


SYMPTOMS = (
    Symptom(
        name="core in use",
        pattern=r"NeuronCore\(s\) not available - Requested:(?P<asked>\S+) Available:\d+",
        sentence="NeuronCore {asked} is held by another process: end it (`tp-harness doctor` names it), or choose "
        "other cores with NEURON_RT_VISIBLE_CORES",
    ),
    Symptom(
        name="core busy",
        pattern=r"NRT_EXEC_NC_BUSY|\bstatus(?:_code)?=1005\b",
        sentence="a NeuronCore is in use by another process or program: end it (`tp-harness doctor` names it), or "
        "choose other cores with NEURON_RT_VISIBLE_CORES",
    ),
    Symptom(
        name="too few cores",
        pattern=r"NRT_LOAD_NOT_ENOUGH_NC|Could not find VNC id",
        sentence="the program needs more NeuronCores than this process has: NEURON_RT_VISIBLE_CORES names too few, or "
        "others hold them (`tp-harness doctor`)",
    ),
    Symptom(
        name="cores and ranks differ",
        pattern=r"LOCAL_WORLD_SIZE \(torchrun\).*?value of (?P<ranks>\d+) is not equal to count (?P<cores>\d+)",
        sentence="NEURON_RT_VISIBLE_CORES names {cores} cores for {ranks} ranks: unset it, as whoever starts the ranks "
        "sets it for them",
    ),
    Symptom(
        name="no such device",
        pattern=r"Could not open the nd(?P<device>\d+)",
        sentence="Neuron device {device} could not be opened: this machine has fewer cores than were asked for, or the "
        "device has failed; `tp-harness doctor` shows those that are there",
    ),
    Symptom(
        name="driver missing",
        pattern=r"Unable to determine Neuron Driver version",
        sentence="the Neuron driver is not loaded: `sudo modprobe neuron`, or install aws-neuronx-dkms",
    ),
    Symptom(
        name="driver too old",
        pattern=r"This runtime requires Neuron Driver version|is not compatible with the installed aws-neuron\S*-dkms"
        r"|failed programming the engine",
        sentence="the driver and the runtime do not fit: install the aws-neuronx-dkms of the runtime's SDK and reload "
        "it (`sudo rmmod neuron; sudo modprobe neuron`)",
    ),
    Symptom(
        name="device left running",
        pattern=r"One or more engines are running\. Please restart device|Failed to end timestamp sync programs"
        r"|Timestamp program stop timeout",
        sentence="an earlier process left the device running: `sudo rmmod neuron; sudo modprobe neuron`",
    ),
    Symptom(
        name="out of device memory",
        pattern=r"Failed to allocate (?P<size>[\d.]+\w*B) \([^)]*usage: (?P<usage>[^)]+)\) on ND (?P<device>\d+)",
        sentence="a NeuronCore of device {device} is out of memory ({size} more for {usage} did not fit into 16 GiB): "
        "raise --tp, or take one --dtype, fewer rows or a shorter --seq",
    ),
    Symptom(
        name="allocation failure",
        pattern=r"status=4\b.{0,20}Allocation Failure",
        sentence="a NeuronCore is out of memory: raise --tp, or take one --dtype, fewer rows or a shorter --seq",
    ),
    Symptom(
        name="not a number",
        pattern=r"NRT_EXEC_COMPLETED_WITH_NUM_ERR|\bstatus(?:_code)?=1003\b|INFER_ERROR_SUBTYPE_NUMERICAL",
        sentence="the device computed a NaN (NRT status 1003): look at the inputs and weights for NaN and infinities, "
        "then at masks (a row of -inf alone gives NaN in a softmax)",
    ),
    Symptom(
        name="unsupported topology",
        pattern=r"Unsupported topology\. Supported number of Neuron Cores",
        sentence="Trn1 has no collectives for this number of cores: use tp 1, 2, 8 or 32, starting at a multiple of it",
    ),
    Symptom(
        name="worlds of their own",
        pattern=r"(?P<ranks>\d+) ranks were started, but torch-xla sees (?P<world>\d+)",
        sentence="torch-xla put {world} of {ranks} ranks into one world, where a sum over ranks is none: without "
        "NeuronCores every process is a world of its own, and --backend xla has all ranks in one",
    ),
    Symptom(
        name="world size changed",
        pattern=r"World size of neff (?P<neff>\d+) is greater than world size of global communicator (?P<world>\d+)",
        sentence="a program for {neff} ranks was loaded in a process that had begun with {world}: every degree needs "
        "processes of its own",
    ),
    Symptom(
        name="bad communicator",
        pattern=r"BuildGlobalComm failed",
        sentence="the ranks did not find each other: NEURON_RT_ROOT_COMM_ID must name a free port of this host that no "
        "other job uses, for example 127.0.0.1:62182",
    ),
    Symptom(
        name="ranks run different programs",
        pattern=r"mismatching number of cc ops",
        sentence="the ranks' programs differ in their collectives: something in the graph depends on the rank; "
        "`--backend xla` names the line",
    ),
    Symptom(
        name="cached failure",
        pattern=r"Got a cached failed neff at (?P<path>\S+?)\.?(?:\s|$)",
        sentence="the compile cache remembers a failed compilation ({path}): set NEURON_CC_FLAGS="
        "--retry_failed_compilation to try again",
    ),
    Symptom(
        name="broken cache entry",
        pattern=r"NEFF is invalid; it could be broken",
        sentence="an entry of the compile cache is broken: remove the folder that the log names from it",
    ),
    Symptom(
        name="cache on a network file system",
        pattern=r"KeyError: '[^']*neuron-compile-cache/",
        sentence="the compile cache lies where its locks do not work: put it on a local disk with "
        "NEURON_COMPILE_CACHE_URL",
    ),
    Symptom(
        name="compiler crashed",
        pattern=r"neuronx-cc (?:compilation )?failed with 70\b",
        sentence="neuronx-cc crashed (70), which many compilers at once can cause (out of host memory): run again, the "
        "finished ones are cached; if it stays, its log says more",
    ),
    Symptom(
        name="compiler failed",
        pattern=r"neuronx-cc (?:compilation )?failed with (?!70\b)(?P<code>\d+)\b",
        sentence="neuronx-cc failed with exit code {code}: the compiler's log, which this one names, says where",
    ),
    Symptom(
        name="old compiler",
        pattern=r"Attempting to load an incompatible model|NEFF version mismatch|NRT_UNSUPPORTED_NEFF_VERSION"
        r"|Unsupported hardware operator code \d+ found in neff",
        sentence="the compiler and the runtime are of different SDKs: install both from one (`tp-harness doctor`)",
    ),
    Symptom(
        name="collectives library missing",
        pattern=r"Error opening libnccom\.so",
        sentence="aws-neuronx-collectives is not installed, or LD_LIBRARY_PATH lacks /opt/aws/neuron/lib",
    ),
    Symptom(
        name="too many open files",
        pattern=r"Too many open files",
        sentence="too many open files: `ulimit -n 65536` before the run",
    ),
    Symptom(
        name="execution timeout",
        pattern=r"(?:\(FATAL-RT-UNDEFINED-STATE\)|\[ND \d+\]\[NC \d+\]) (?:execution|inference) timeout "
        r"\((?P<ms>\d+) ms\) on (?P<where>[^,]+)(?!.*DGE notifications)",
        sentence="a program did not end within {ms} ms on {where}: set NEURON_RT_EXEC_TIMEOUT (seconds) higher; if it "
        "stays, a rank is missing from a collective",
    ),
    Symptom(
        name="hang in a collective",
        pattern=r"suspected hang in collectives operation (?P<number>\d+) out of (?P<of>\d+)"
        r"|NRT_EXEC_HW_ERR_COLLECTIVES|\bstatus(?:_code)?=1200\b",
        sentence="ranks hang in a collective: compare the recorded schedules (`--backend xla` does before anything "
        "runs); if they agree, look for a hardware error in the other ranks' logs",
    ),
    Symptom(
        name="hardware error",
        pattern=r"Uncorrectable (?:HBM |SRAM )?memory error|NEURON_HW_ERR=|DMA [TR]X engine \d+ is in an abort state"
        r"|NRT_EXEC_HW_ERR_(?!COLLECTIVES)\w+|\bstatus(?:_code)?=120[1235]\b",
        sentence="the hardware reports an error that cannot be corrected: stop and start the instance, or replace it",
    ),
    Symptom(
        name="notification queue overflow",
        pattern=r"NRT_EXEC_SW_NQ_OVERFLOW|\bstatus(?:_code)?=1204\b|potentially caused by DGE notifications",
        sentence="the runtime's notification queue ran over: set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0",
    ),
    Symptom(
        name="out of bounds",
        pattern=r"due to out-of-bound access|NRT_EXEC_OOB|\bstatus(?:_code)?=1006\b",
        sentence="a program read or wrote out of bounds: look for token ids, positions or expert numbers beyond their "
        "table; NEURON_RT_DBG_DUMP_INPUTS_ON_ERR=1006 keeps the inputs",
    ),
    Symptom(
        name="host out of memory",
        pattern=r"NRT_FAIL_HOST_MEM_ALLOC",
        sentence="the host ran out of memory, as 32 compilers at once can make it: fill the compile cache with one "
        "component at a time (--component), then run all",
    ),
    Symptom(
        name="device lost",
        pattern=r"NRT_EXEC_UNIT_UNRECOVERABLE|\bstatus(?:_code)?=101\b",
        sentence="a NeuronCore cannot recover: run again in new processes; if it stays, `sudo rmmod neuron; sudo "
        "modprobe neuron`, then stop and start the instance",
    ),
    Symptom(
        name="runtime did not start",
        pattern=r"nrt_init failed|Failed to initialize devices, error:",
        sentence="the Neuron runtime did not start, and its log says no known cause: see which process holds the cores "
        "(`tp-harness doctor`), else `sudo rmmod neuron; sudo modprobe neuron`",
        general=True,
    ),
    Symptom(
        name="program failed",
        pattern=r"Failed to execute the model status=(?P<status>\d+)",
        sentence="a program failed on the device with NRT status {status}, which AWS's page on nrt_status explains",
        general=True,
    ),
    Symptom(
        name="old C library",
        pattern=r"version `GLIBC_2\.3\d' not found",
        sentence="this system's C library is too old for torch-xla 2.9: use Ubuntu 22.04 or newer (Amazon Linux 2023 "
        "has no GLIBC_2.35)",
    ),
    Symptom(
        name="a rank is still compiling",
        pattern=r"Timeout waiting for RX \(waited \d+ sec\)|No candidate found under",
        sentence="some ranks waited for one that was still compiling, which ends by itself: run again (the compile "
        "cache is warm now), or give --timeout more seconds",
        fatal=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A symptom in a rank's log, with its sentence filled in."""

    symptom: Symptom
    sentence: str
    position: int


def recognise(text: str) -> tuple[Recognised, ...]:
    """The symptoms in a log, each once, in the order in which they appeared; a general one only if it is alone."""
    found = []
    for symptom in SYMPTOMS:
        match = re.search(symptom.pattern, text)
        if match:
            sentence = symptom.sentence.format_map(match.groupdict())
            found.append(Recognised(symptom=symptom, sentence=sentence, position=match.start()))
    specific = [recognised for recognised in found if not recognised.symptom.general]
    return tuple(sorted(specific or found, key=lambda recognised: recognised.position))


def advice(logs: Mapping[int, str], *, hung: bool) -> str:
    """What the ranks' logs say about why a run ended, and the remedy; "" where nothing is recognised.

    Args:
        logs: rank -> text, the rank that failed first at the front.
        hung: the run ran out of time; then what is not fatal counts as well.
    """
    sentences: dict[str, str] = {}
    for rank, text in logs.items():
        for recognised in recognise(text):
            if recognised.symptom.fatal or hung:
                sentences.setdefault(recognised.symptom.name, f"rank {rank}'s log: {recognised.sentence}")
    return "; ".join(list(sentences.values())[:_MOST_SENTENCES])


def explained(error: BaseException) -> str:
    """The first line of an exception's message, and after it what it means and the remedy, where that is known."""
    text = str(error)
    return "; ".join((text.partition("\n")[0], *(found.sentence for found in recognise(text))))


def read_log(path: Path) -> str:
    """The beginning and the end of a log, joined; "" if there is no such file."""
    try:
        with path.open("rb") as file:
            head = file.read(_MOST_HEAD)
            size = path.stat().st_size
            file.seek(max(len(head), size - _MOST_TAIL))
            return (head + file.read()).decode(errors="replace")
    except OSError:
        return ""
