"""What a report says of costs, and the charts it draws: nothing unmeasured, and nothing modelled as measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from records import gate, result
from report_pages import NAMES, forwards, page_of, rank, run_of, stable

from tp_harness.report import PAGES, cells, html, view
from tp_harness.report.charts import accuracy_charts, cost_charts, time_charts
from tp_harness.report.costs import costs, scaling
from tp_harness.report.plotly import plotly
from tp_harness.report.svg import svg
from tp_harness.results.result import Forwards, Program, Status


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


def test_without_degree_1_nothing_is_compared_with_it() -> None:
    for page in ("report.html", "report.md"):
        assert cells.NO_DEGREE_1 not in page_of("clean", page)
        record = run_of("clean")
        record.results = [each for each in record.results if each.tp > 1]
        text = PAGES[page](record, ())
        assert cells.NO_DEGREE_1 in text
        assert "over degree 1's" not in text


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [float("inf"), float("nan"), 1.7e308, 5e-324, -1.0])
@pytest.mark.parametrize("value", [1e-7, float("nan"), 1.7e308, 5e-324])
def test_a_limit_without_a_place_is_left_out(value: float, limit: float, dtype: str) -> None:
    results = [result(dtype=dtype, gates=(replace(gate(value), limit=limit),))]
    [chart] = accuracy_charts(replace(run_of("clean"), results=results))
    assert len(chart.lines) == 1
    drawn = ET.fromstring(svg(chart))
    assert not [each for each in drawn.iter() if each.attrib.get("class") == "limit"]
    assert [trace["colour"] for trace in plotly(chart)["traces"]] == [0]
    json.dumps(plotly(chart), allow_nan=False)


def test_a_chart_of_no_result_has_a_page() -> None:
    record = run_of("clean")
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
