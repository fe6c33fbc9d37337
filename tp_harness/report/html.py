"""report.html: one file with everything in it, which loads nothing else. Pure: RunRecord -> text.

A Content-Security-Policy allows the page's own two scripts by their hashes and no request at all, so that a name that
was not escaped could not run a script or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import printable
from ..results.mutation_score import Trial, remarks, score_table, trial_table
from ..results.result import Result
from ..results.run_record import RunRecord
from ..trn1 import MODELLED
from ..trn1.view import ending, tables
from ..version import __version__
from . import cells, proofs, view
from .charts import accuracy_charts, cost_charts, time_charts
from .failure_text import alike_text, details, divergence_text, further_text, sentence
from .failures import failures, title_of
from .headline import legend
from .modelled import model_charts, predictions
from .plotly import plotly
from .svg import svg, value_text


def render(record: RunRecord, trials: Sequence[Trial] = ()) -> str:
    """The page; `trials` are the outcomes of `tp-harness faults`, if it was run."""
    script, library = _file("templates/page.js"), _file("vendor/plotly-basic.min.js")
    accuracy, cost, time = accuracy_charts(record), cost_charts(record), time_charts(record)
    models = predictions(record)
    modelled = {each.model: model_charts(each) for each in models}
    drawn = [*accuracy, *cost, *time, *(chart for charts in modelled.values() for chart in charts)]
    return _template().render(
        record=record,
        view=view,
        version=__version__,
        matrix=view.matrix(record.results),
        components=view.components(record.results),
        dtypes=view.dtypes(record.results),
        degrees=view.degrees(record.results),
        failures=view.failures(record.results),
        mistakes=failures(record.results),
        sentence=sentence,
        details=details,
        legend=legend(record.results),
        proofs=proofs,
        proof_table=proofs.table(record.results),
        title_of=title_of,
        accuracy=accuracy,
        cost_charts=cost,
        time_charts=time,
        cells=cells,
        trials=trials,
        fault_tables=(score_table(trials), trial_table(trials)) if trials else (),
        fault_remarks=remarks(trials),
        cost_rows=cells.cost_rows(record),
        models=models,
        modelled=modelled,
        model_tables=tables,
        model_ending=ending,
        mark=MODELLED,
        data=_json({chart.id: plotly(chart) for chart in drawn}),
        style=Markup(_file("templates/page.css")),
        library=Markup(library),
        script=Markup(script),
        policy=_policy(library, script),
        row_id=row_id,
        svg=lambda chart: Markup(svg(chart)),
        value_text=value_text,
        divergence_text=divergence_text,
        alike_text=alike_text,
        further_text=further_text,
    )


def row_id(result: Result) -> str:
    """The HTML id of a result's row; any name of a component gives a valid one."""
    name = hashlib.blake2b(result.component.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"row-{name}-{result.layer}-{result.dtype}-{result.tp}"


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _shown(value: Any) -> Any:
    """The text of a placeholder, its lines without control characters and the like."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _policy(*scripts: str) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
