"""Predictions of the Trn1 model for a run's report, and charts marked as modelled. Nothing here was measured."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..models import SMALL, families, is_whole, real_models
from ..results.run_record import RunRecord
from ..trn1 import MODELLED
from ..trn1.constants import CORE_BYTES
from ..trn1.predict import Prediction, predict
from .charts import Chart, Line, Series


def predictions(record: RunRecord) -> list[Prediction]:
    """Predictions for the run's model at degrees 1, 2, 8 and 32; for the real models, where the run's is a small one.

    Empty for a user's Case, and for a config of an older run that this version does not know.
    """
    if record.options.get("case"):
        return []
    try:
        config = families()[0].config(**record.options["model"])
        if config.hidden_size > SMALL:
            return [predict(config, name=str(record.options.get("model_name", "model")))]
        return [predict(model, name=name) for name, model in real_models().items()]
    except (KeyError, TypeError, UsageError):  # of an older run: a config that this version does not know
        return []


def model_charts(prediction: Prediction) -> list[Chart]:
    """Charts of the bytes per core beside a core's HBM, and of the seconds of a decode step."""
    memory = prediction.memory
    parts = ("weights", "cache", "activations")
    values = ([m.weight_bytes for m in memory], [m.cache_bytes for m in memory], [m.workspace_bytes for m in memory])
    return [
        Chart(
            id=f"memory-{_slug(prediction)}",
            title=f"{prediction.model}: memory per core ({MODELLED})",
            caption=f"Bytes on each core, batch {prediction.batch}, {prediction.seq} tokens, against the 16 GiB of a "
            "NeuronCore.",
            x_title="stored as, at tp_degree",
            y_title="bytes per core",
            x=tuple(f"{m.storage} @{m.tp}" for m in memory),
            series=tuple(
                Series(name=n, values=tuple(v), colour=i) for i, (n, v) in enumerate(zip(parts, values, strict=True))
            ),
            lines=(Line(name="16 GiB, one NeuronCore", value=CORE_BYTES.value),),
            kind="stack",
            unit="B",
        ),
        _terms_chart(prediction),
    ]


def _slug(prediction: Prediction) -> str:
    return re.sub(r"[^\w-]+", "-", prediction.model)


def _terms_chart(prediction: Prediction) -> Chart:
    """The chart of the roofline's terms for a decode step of the whole model, in seconds."""
    rows = [row for row in prediction.components if is_whole(row.component) and row.phase == "decode"]
    terms = (("compute", "compute_s"), ("HBM", "hbm_s"), ("NeuronLink", "link_s"))
    return Chart(
        id=f"decode-{_slug(prediction)}",
        title=f"{prediction.model}: one decode step ({MODELLED})",
        caption=f"Time of one further token by what bounds it, bfloat16, batch {prediction.batch}, "
        f"{prediction.seq} tokens in the cache.",
        x_title="tp_degree",
        y_title="seconds",
        x=tuple(str(row.tp) for row in rows),
        series=tuple(
            Series(name=name, values=tuple(getattr(row, field) for row in rows), colour=i)
            for i, (name, field) in enumerate(terms)
        ),
        kind="stack",
        unit="s",
    )
