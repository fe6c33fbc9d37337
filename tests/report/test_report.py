"""The pages of a run: the same text from the same run.json, whole in one file, and nobody's names are markup.

`TP_HARNESS_SNAPSHOTS=write pytest tests/report/test_report.py` writes the expected pages anew; read the
difference before you commit it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from records import gate, new_record, result
from report_pages import NAMES, RUNS, Tree, outside, page_of, row_text, run_of, stable

from tp_harness.errors import printable
from tp_harness.report import PAGES, html, view
from tp_harness.results.result import Status


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_as_it_was(name: str, page: str) -> None:
    text = page_of(name, page).encode("utf-8", "replace").decode()
    expected = RUNS / name / page
    text = stable(text) if page == "report.html" else text
    if os.environ.get("TP_HARNESS_SNAPSHOTS") == "write":
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8"), "see the head of this file"


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


def test_a_part_of_the_model_is_named_as_one_everywhere() -> None:
    part = result(component="transformer", extent="2 of 24 layers", status=Status.MISMATCH, reason="differs")
    record = replace(run_of("clean"), results=[part])
    for page, render in PAGES.items():
        assert "transformer (2 of 24 layers)" in render(record, ()), page
    assert part.title == "transformer (2 of 24 layers) layer 0 tp 8 float32"


def test_the_axes_of_a_mesh_are_named_everywhere() -> None:
    wide = [result(tp=tp, status=Status.PASS, gates=(gate(1e-7),), mesh={"ep": 2, "tp": tp // 2}) for tp in (2, 8)]
    record = replace(run_of("clean"), results=wide, options=run_of("clean").options | {"ep": 2})
    for page in ("report.html", "report.md"):
        assert "mlp: tp 2 is ep 2 x tp 1, tp 8 is ep 2 x tp 4." in PAGES[page](record, ()), page
    axes = [each.attrib["value"] for each in ET.fromstring(PAGES["junit.xml"](record, ())).iter("property")]
    assert axes == ["ep 2 x tp 1", "ep 2 x tp 4"]
    assert " --ep 2 " in view.command(record, wide[0])
    assert " --ep " not in view.command(run_of("clean"), wide[0])


def test_skipped_is_no_failure() -> None:
    record = replace(run_of("clean"), results=[result(status=Status.SKIPPED, reason="no card")])
    root = ET.fromstring(PAGES["junit.xml"](record, ()))
    assert root.attrib["skipped"] == "1"
    assert root.attrib["failures"] == root.attrib["errors"] == "0"
    [skipped] = root.iter("skipped")
    assert skipped.attrib["message"] == "no card"


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


def test_an_own_case_is_not_told_by_sizes_of_gpt_oss() -> None:
    own, built_in = ({name for name, _ in view.options(run_of(run))} for run in ("mismatch", "clean"))
    assert built_in - own >= {"batch", "seq", "model_name", "model.hidden_size"}
    assert {"case", "seed", "draws", "degrees"} <= own


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


def test_a_log_that_is_empty_or_gone_is_no_link(tmp_path: Path) -> None:
    record = new_record(tmp_path, result(tp=3, status=Status.CRASH, reason="rank 1 of 3 died"))
    logs = record.folder / "logs/tp3"
    logs.mkdir(parents=True)
    (logs / "rank0.log").touch()
    (logs / "rank1.log").write_text("a traceback")
    for page, render in PAGES.items():
        text = render(record, ())
        assert "logs/tp3/rank1.log" in text, page
        assert "logs/tp3/rank0.log" not in text, page
        assert "logs/tp3/rank2.log" not in text, page


def test_controls_and_faults_are_shown() -> None:
    page, text = page_of("clean"), page_of("clean", "report.md")
    controls = run_of("clean").controls
    assert [control.tp for control in controls] == [1, 2]
    section = page.partition('<section id="faults"')[2].partition("</section>")[0]
    for control in controls:
        assert f"<strong>{control.fault}</strong>" in section
        assert f"--fault {control.fault} --model tiny --tp {control.tp}" in section
        assert f"{control.fault} at tp {control.tp}" in text.partition("rejected as they must be: ")[2]
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
