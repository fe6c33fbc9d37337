"""The pages of a run: the same text from the same run.json, whole in one file, and nobody's names are markup.

`TP_HARNESS_SNAPSHOTS=write pytest tests/test_report.py` writes the expected pages anew; read the difference before
you commit it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from test_record import fill_disk_half_way, gate, result

from tp_harness import cli
from tp_harness.commands import verify
from tp_harness.errors import UsageError, printable
from tp_harness.record import RunRecord, read_run
from tp_harness.report import PAGES, html, view, write_pages
from tp_harness.report.charts import accuracy_charts, cost_charts, time_charts
from tp_harness.report.costs import costs, scaling
from tp_harness.report.kills import read_trials
from tp_harness.report.svg import svg
from tp_harness.result import Collective, Forwards, Program, RankRecord, Status

RUNS = Path(__file__).parent / "report_runs"
NAMES = ("clean", "mismatch", "crash", "void", "hostile", "old")
VOID_TAGS = {"meta", "link", "br", "img", "input", "hr"}


def run_of(name: str) -> RunRecord:
    return read_run(RUNS / name)


def page_of(name: str, page: str = "report.html") -> str:
    """A page as `tp-harness report` writes it, with the faults that lie beside the run."""
    return PAGES[page](run_of(name), read_trials(RUNS / name))


def stable(page: str) -> str:
    """A page without what is the same in all, and without the Trn1 model, which has tests of its own."""
    page = re.sub(r"(<style>|<script>).*?(</style>|</script>)", r"\1\2", page, flags=re.DOTALL)
    page = re.sub(r'(<section id="model").*?(</section>)', r"\1\2", page, flags=re.DOTALL)
    page = re.sub(r'(<script type="application/json" id="charts">).*?(</script>)', r"\1\2", page, flags=re.DOTALL)
    page = re.sub(r"sha256-[\w+/=]+|by tp-harness [\w.]+", "", page)
    assert page.endswith("</html>")
    return page


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_as_it_was(name: str, page: str) -> None:
    text = page_of(name, page).encode("utf-8", "replace").decode()
    expected = RUNS / name / page
    text = stable(text) if page == "report.html" else text
    if os.environ.get("TP_HARNESS_SNAPSHOTS") == "write":
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8"), "see the head of this file"


class Tree(HTMLParser):
    """What a browser would find: tags, ids, links, and the text under each id; fails where tags do not close."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] in (["script"], ["style"]) else data

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.attributes if name in attributes]


def outside(tree: Tree) -> list[str]:
    """Addresses in a page that lead out of its folder."""
    addresses = [value for name in ("href", "src", "srcset", "action", "data", "poster") for value in tree.values(name)]
    return [a for a in addresses if not a.startswith(("#", "logs/", "data:,"))]


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_whole_and_asks_for_nothing(name: str) -> None:
    page = page_of(name)
    tree = Tree(page)
    assert outside(tree) == []
    assert not re.search(r"@import|url\(", page.partition("</style>")[0])
    assert len(page.encode("utf-8", "replace")) < 5e6
    ids = tree.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in tree.values("href") if link.startswith("#")} <= set(ids)
    [policy] = [a["content"] for _, a in tree.attributes if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_an_address_that_leads_out_would_be_found() -> None:
    page = page_of("clean").replace("</main>", '<img src="https://x.invalid/a.png"><a href="//x.invalid">x</a></main>')
    assert outside(Tree(page)) == ["//x.invalid", "https://x.invalid/a.png"]
    with pytest.raises(AssertionError):
        Tree(page.replace("</main>", "<b></main>"))


def test_hostile_names_are_text() -> None:
    record, plain = run_of("hostile"), Tree(page_of("mismatch"))
    page = html.render(record)
    tree = Tree(page)
    assert set(tree.tags) <= {*plain.tags, "pre"}  # no <img>, no <b>
    assert tree.tags["script"] == 3
    assert not [name for _, attributes in tree.attributes for name in attributes if name.startswith("on")]
    for component in {each.component for each in record.results}:
        assert printable(component) in tree.text
    assert "{{ 7*7 }}" in tree.text
    charts = re.search(r'id="charts">(.*?)</script>', page, flags=re.DOTALL)
    assert charts
    assert "<" not in charts[1]
    json.loads(charts[1])


@pytest.mark.parametrize("name", ["hostile", "clean"])
def test_hostile_names_are_text_in_markdown(name: str) -> None:
    page = page_of(name, "report.md")
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", page.replace("<details><summary>", "").replace("</", "", 1))
    assert not re.search(r"(?<!\\)<(?!/?(?:details|summary))", outside_code)
    assert not re.search(r"@(?!\u200b)", outside_code)
    assert "](" not in outside_code
    for table in re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize("name", NAMES)
def test_junit_says_what_failed_and_why(name: str) -> None:
    record = run_of(name)
    root = ET.fromstring(PAGES["junit.xml"](record, ()))
    statuses = Counter(each.status for each in record.results)
    undecided = sum(statuses[s] for s in (Status.CRASH, Status.TIMEOUT, Status.MISSING, Status.VOID))
    for totals in ([root], root.findall("testsuite")):
        numbers = {key: sum(int(each.attrib[key]) for each in totals) for key in ("tests", "failures", "errors")}
        assert numbers == {
            "tests": len(record.results),
            "failures": statuses[Status.MISMATCH],
            "errors": undecided,
        }
    failed = root.findall(".//failure") + root.findall(".//error")
    assert Counter(each.attrib["type"] for each in failed) == Counter(
        each.status.value for each in record.results if each.status is not Status.PASS
    )
    assert all(each.attrib["message"] and "repeat: tp-harness verify " in (each.text or "") for each in failed)


def test_skipped_is_no_failure() -> None:
    record = replace(run_of("clean"), results=[result(status=Status.SKIPPED, reason="no card")])
    root = ET.fromstring(PAGES["junit.xml"](record, ()))
    assert root.attrib["skipped"] == "1"
    assert root.attrib["failures"] == root.attrib["errors"] == "0"
    [skipped] = root.iter("skipped")
    assert skipped.attrib["message"] == "no card"


def row_text(page: str, record: RunRecord, index: int) -> str:
    """What stands under one result's heading."""
    start = page.index(f'id="{html.row_id(record.results[index])}"')
    return page[start : page.index("</details>", start)]


def test_a_failure_leads_to_its_tensor_cause_log_and_command() -> None:
    record, page = run_of("mismatch"), page_of("mismatch")
    index = next(i for i, each in enumerate(record.results) if each.status is Status.MISMATCH)
    failed = record.results[index]
    assert f'href="#{html.row_id(failed)}"' in page.partition('id="failures"')[0]
    text = row_text(page, record, index)
    for words in ("output.0 on ranks 0-1", "<strong>bias_times_tp</strong>", "of the squared error"):
        assert words in text
    assert '<a href="logs/tp2/rank0.log">rank 0</a>' in text
    assert shlex.join(shlex.split(view.command(record, failed))) in text
    unexplained = next(i for i, each in enumerate(record.results) if each.tp == 4)
    assert "None of the 24 known mistakes" in row_text(page, record, unexplained)


def test_a_crash_shows_its_traceback() -> None:
    record, page = run_of("crash"), page_of("crash")
    index = next(i for i, each in enumerate(record.results) if each.status is Status.CRASH)
    text = row_text(page, record, index)
    assert "RuntimeError" in text.partition("<pre")[2]
    assert "no &lt;b&gt;shards&lt;/b&gt; today" in text


def test_logs_begin_with_the_rank_that_went_wrong_first() -> None:
    record = run_of("mismatch")
    failed = next(each for each in record.results if each.first_divergence)
    assert failed.first_divergence
    wrong = replace(failed, first_divergence=replace(failed.first_divergence, ranks=(1,)))
    assert [label for label, _ in view.logs(record, wrong)] == ["rank 1", "rank 0"]
    assert view.logs(record, replace(failed, log_dir="")) == []


def test_the_command_asks_for_one_row() -> None:
    record = run_of("clean")
    row = next(each for each in record.results if (each.component, each.tp, each.dtype) == ("mlp", 2, "bfloat16"))
    words = shlex.split(view.command(record, row))
    assert words[:2] == ["tp-harness", "verify"]
    asked = verify.options_of(cli._parser().parse_args(words[1:]))
    assert (asked.components, asked.layers, asked.degrees, asked.dtypes) == (("mlp",), (0,), (2,), ("bfloat16",))
    assert (asked.model, asked.backend, asked.seq, asked.batch) == ("tiny", "gloo", 20, 2)
    assert (asked.seed, asked.draws, asked.repeats) == (0, 1, 3)
    own = run_of("mismatch")
    words = shlex.split(view.command(own, own.results[0]))
    asked = verify.options_of(cli._parser().parse_args(words[1:]))
    assert (asked.case, asked.components, asked.batch, asked.seq) == ("cases.py:WRONG", (), None, None)


def forwards(*wall: float, inside: float = 0.0, warm: bool = True) -> Forwards:
    return Forwards(wall_s=wall, cpu_s=(0.5,) * len(wall), collective_s=(inside,) * len(wall), warm=warm)


def rank(number: int, timed: Forwards | None, **values: Any) -> RankRecord:
    call = Collective(kind="all_reduce", group_size=2, shape=(2,), dtype="float32", bytes=8, seconds=0.25)
    fields: dict[str, Any] = {"weight_bytes": 100, "peak_bytes": 7, "collectives": (call, call), "flops": 10}
    return RankRecord(rank=number, core="c", wall_s=1.0, cpu_s=1.0, forwards=timed, **(fields | values))


def test_costs_are_those_of_the_slowest_rank_of_each_forward() -> None:
    two = result(tp=2, ranks=(rank(0, forwards(1.0, 5.0, 3.0)), rank(1, forwards(2.0, 4.0, 1.0, inside=0.5))))
    one = result(tp=1, ranks=(rank(0, forwards(6.0), flops=16, weight_bytes=160),))
    by_degree = costs([one, two])["mlp", 0, "float32"]
    cost = by_degree[2]
    assert (cost.latency_s, cost.timed, cost.warm) == (3.0, 3, True)  # of 2, 5, 3
    assert (cost.low_s, cost.high_s) == (2.2, 4.6)
    assert cost.wall_s == (3.0, 2.0)
    assert cost.compute_s == (3.0, 1.5)
    assert cost.communication == 0.1
    assert cost.imbalance == 1.0
    [calls] = cost.calls
    assert (calls.count, calls.bytes, calls.seconds) == (2, 16, 0.5)
    scale = scaling(by_degree, 2)
    assert (scale.speed_up, scale.efficiency) == (2.0, 1.0)
    assert (scale.cpu_speed_up, scale.cpu_efficiency) == (1.0, 0.5)
    assert (scale.flops, scale.weights) == (20 / 16, 200 / 160)


def test_what_was_not_measured_is_not_shown() -> None:
    assert costs([result(ranks=(rank(0, None),))]) == {}
    untimed = replace(forwards(1.0), collective_s=())
    by_degree = costs([result(tp=2, ranks=(rank(0, untimed, flops=None),))])["mlp", 0, "float32"]
    cost, scale = by_degree[2], scaling(by_degree, 2)
    assert (cost.communication, cost.flops, cost.compute_s) == (None, (), ())
    assert (scale.speed_up, scale.cpu_efficiency, scale.flops, scale.weights) == (None, None, None, None)
    record = run_of("old")
    assert cost_charts(record) == time_charts(record) == []
    assert 'id="cost"' not in page_of("old")


def test_a_program_that_never_ran_has_no_times_and_still_a_page() -> None:
    nothing = rank(0, Forwards(wall_s=(), cpu_s=()), weight_bytes=0, peak_bytes=0, collectives=(), flops=None)
    traced = rank(0, replace(forwards(2.0), cpu_s=(), collective_s=()))
    results = [result(tp=1, ranks=(nothing,)), result(tp=2, ranks=(traced, traced))]
    cost = costs(results)["mlp", 0, "float32"][1]
    assert (cost.latency_s, cost.low_s, cost.wall_s, cost.cpu_s, cost.imbalance) == (None, None, (), (), None)
    record = replace(run_of("clean"), backend="xla", results=results)
    page = stable(html.render(record))
    assert "CPU time per rank is not known" in page
    assert "Efficiency against degree" not in page
    PAGES["report.md"](record, ())
    alone = replace(record, results=results[:1])
    assert "Nothing was timed" in html.render(alone)


def test_the_program_of_a_compiled_run_is_shown() -> None:
    program = Program(fingerprint="c0ffee", compiles=1, collectives=(), fallbacks=("aten::topk",))
    page = stable(html.render(replace(run_of("clean"), results=[result(program=program)])))
    assert "c0ffee, compiled 1 time for all ranks and draws; 0 collectives; on the host: aten::topk" in page


def test_collectives_that_were_not_timed_apart_have_no_share() -> None:
    alone, together = replace(forwards(2.0), cpu_s=()), replace(forwards(3.0), cpu_s=(), collective_s=())
    results = [result(tp=1, ranks=(rank(0, alone),)), result(tp=2, ranks=(rank(0, together), rank(1, together)))]
    record = replace(run_of("clean"), results=results)
    assert [chart.id for chart in cost_charts(record)] == ["memory"]
    [chart] = time_charts(record)
    assert [(series.name, series.values) for series in chart.series] == [("forward", (2.0, 3.0, 3.0))]
    assert "collectives were not timed apart" in chart.caption


def test_wall_time_leads_only_where_ranks_have_cores_of_their_own() -> None:
    record = run_of("clean")
    on_cpu = stable(html.render(record))
    assert "wall-clock speed-up means nothing here" in on_cpu
    assert "speed-up</th>" not in on_cpu
    on_neuron = stable(html.render(replace(record, backend="neuron")))
    assert "wall time says what a degree costs" in on_neuron
    assert '<th scope="col">speed-up</th>' in on_neuron
    assert {c.title for c in cost_charts(record)} ^ {
        c.title for c in cost_charts(replace(record, backend="neuron"))
    } == {
        "Efficiency against degree, from CPU time",
        "Efficiency against degree, from wall time",
    }


def test_what_is_modelled_is_marked_and_apart() -> None:
    page = page_of("clean")
    head, _, rest = page.partition('<section id="model"')
    section = rest.partition("</section>")[0]
    titles = re.findall(r'<p class="caption">(.*?)</p>|<h3 id="[^"]*">(.*?)</h3>|<summary>(.*?)</summary>', section)
    named = [first or second or third for first, second, third in titles]
    named = [name for name in named if not name.startswith("Numbers of this chart")]
    assert len(named) > 8
    assert all("model, not measured" in name for name in named), named
    assert "model, not measured" not in head.partition('<section id="cost"')[2]
    assert 'id="model"' not in page_of("mismatch")  # there is no model of a user's modules


def test_controls_and_faults_are_shown() -> None:
    page, text = page_of("clean"), page_of("clean", "report.md")
    controls = run_of("clean").controls
    assert [control.tp for control in controls] == [1, 2]
    section = page.partition('<section id="faults"')[2].partition("</section>")[0]
    for control in controls:
        assert f"<strong>{control.fault}</strong>" in section
        assert f"--fault {control.fault} --model tiny --tp {control.tp}" in section
        assert f"`{control.fault}` at tp {control.tp} rejected" in text
    assert "&lt;b&gt;gate&lt;/b&gt;|symmetric" in section
    assert "was missed: nothing rejected it" in section
    assert "was missed: nothing rejected it" in text
    root = ET.fromstring(page_of("clean", "junit.xml"))
    suite = next(each for each in root if each.attrib["name"] == "faults")
    assert (root.attrib["failures"], suite.attrib["failures"], suite.attrib["tests"]) == ("1", "1", "5")
    assert 'id="faults"' not in page_of("old")


def test_a_control_that_passed_is_plain_to_see() -> None:
    record = run_of("clean")
    passed = replace(record, controls=[replace(record.controls[0], rejected=False)])
    assert 'class="bad"><strong>' in html.render(passed)
    assert "NOT rejected" in html.render(passed)
    assert "**NOT rejected**" in PAGES["report.md"](passed, ())
    assert "NOT rejected" not in html.render(record)


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "Expecting property name"), ("[]", "indices"), ('{"trials": [{}]}', "Trial lacks fault, tp")],
)
def test_another_faults_json_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "faults.json").write_text(text)
    with pytest.raises(UsageError, match=r"faults.json is not what `tp-harness faults --json` prints \(.*" + why):
        read_trials(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_static_charts_are_well_formed(name: str) -> None:
    record = run_of(name)
    for chart in (*accuracy_charts(record), *cost_charts(record), *time_charts(record)):
        text = re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff]", "", svg(chart))
        root = ET.fromstring(text)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        assert "nan" not in " ".join(each.attrib.get("d", "") for each in root.iter("path"))


def test_a_chart_of_zeros_or_nothing_has_axes() -> None:
    record = run_of("clean")
    for value in (0.0, float("nan"), float("inf")):
        [chart] = accuracy_charts(replace(record, results=[result(gates=(gate(value),))]))
        ET.fromstring(svg(chart))
    assert accuracy_charts(replace(record, results=[result()])) == []
    html.render(replace(record, results=[]))
    html.render(replace(record, results=[result(status=Status.TIMEOUT)], finished=False))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (2.5e-7, "0.25 us"),
        (9.996e-4, "1 ms"),
        (0.0123, "12.3 ms"),
        (2.0, "2 s"),
        (164.2, "164 s"),
        (1550.9, "1,551 s"),
        (None, "-"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert view.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023 * 1024, "1,023 KiB"), (16 * 2**30, "16 GiB")],
)
def test_size(value: int, text: str) -> None:
    assert view.size(value) == text


def test_the_command_renders_again_without_torch(tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    shutil.copytree(RUNS / "mismatch", folder)
    for page in PAGES:
        (folder / page).unlink(missing_ok=True)
    without = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None"
    without += "; from tp_harness.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", without, "report", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [str(folder / page) for page in PAGES]
    for page, render in PAGES.items():
        assert (folder / page).read_text(encoding="utf-8") == render(read_run(folder), ())


def test_no_run_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"tp-harness: cannot read {tmp_path / 'run.json'}")


def test_a_full_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(run_of("void"), folder=tmp_path)
    monkeypatch.setattr(Path, "write_text", fill_disk_half_way)
    with pytest.raises(UsageError, match=r"report.html: No space left on device; run.json is whole\.$"):
        write_pages(record)
    assert list(tmp_path.iterdir()) == []


def test_verify_leaves_pages_and_a_row_repeats_exactly(tmp_path: Path) -> None:
    def run(words: list[str]) -> tuple[RunRecord, str]:
        command = [sys.executable, "-m", "tp_harness", *words, "--out", str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        folder = Path(ended.stdout.splitlines()[-1]).parent
        return read_run(folder), ended.stdout

    whole, output = run(shlex.split("verify --component mlp --component rmsnorm --tp 1,2 --seed 3"))
    assert output.splitlines()[-1] == str(whole.folder / "report.html")
    assert {path.name for path in whole.folder.iterdir()} >= {*PAGES, "run.json"}
    assert (whole.folder / "junit.xml").read_text() == PAGES["junit.xml"](whole, ())
    row = next(each for each in whole.results if (each.component, each.tp, each.dtype) == ("mlp", 2, "float32"))
    [again] = run(shlex.split(view.command(whole, row))[1:])[0].results
    assert (again.title, again.gates, again.worst) == (row.title, row.gates, row.worst)


def test_a_verdict_stands_without_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from tp_harness import report

    def fail(_record: RunRecord) -> list[Path]:
        raise UsageError("cannot write report.html: No space left on device; run.json is whole.")

    monkeypatch.setattr(report, "write_pages", fail)
    verify._leave_pages(run_of("clean"), Console())
    assert "run.json is whole" in capsys.readouterr().err
