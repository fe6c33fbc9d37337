"""docs/trn1-model.md: the model's formulas, constants, fit and tables. `python -m tp_harness.trn1.page` writes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..models import families, real_models
from ..text_table import TextTable
from . import MODELLED
from .calibrate import FitRow, decode_fit, fit_decode, fit_prefill, prefill_fit, prefill_with_start
from .collectives import HOW
from .constants import ALL, CORE_HBM
from .predict import predict
from .published import ROWS
from .view import ending, fit_table, tables

PAGE = Path("docs/trn1-model.md")

HEAD = f"""# {families()[0].title} on Trn1: {MODELLED}

Written by `python -m tp_harness.trn1.page`; a test checks that it is current. `tp-harness model` prints the same tables
for any config, batch and sequence.

Nothing on this page was measured by this project. It is arithmetic on the config, times of a small roofline, and
constants that are either published or fitted to published rows. All published rows are of dense models of 7B to 70B at
tp 32: other degrees, experts, and prompts are extrapolations.

## What is computed

Per rank and step (`tp_harness/trn1/work.py`; tests hold weights and messages equal to what ranks of real runs record,
and operations to torch's flop counter):

    seconds = operations / (peak x efficiency)
            + (weights read + activations) / weight rate + cache / cache rate + scores x time per score
            + sum over collectives of (latency(tp) + passes (tp - 1) / tp x bytes / link rate)

- The terms are added, not overlapped: the published times per token fit a sum.
- Prefill computes the whole prompt with plain attention (every score, masked or not), and the logits of the last token.
  Decode computes one token per row; its cache holds every position, on windowed layers the window.
- An expert that no token chose is not read: E (1 - (1 - k / E)^tokens) experts are, for independent, even choices.
- latency(32) is fitted; at other degrees it is in proportion to the published samples at 2 and 32 ranks, with log2(tp)
  between them. The rows cannot tell how much of it shrinks with the degree; "at most" takes it in full everywhere, tp 1
  included.
- passes: 2 for an all-reduce, 1 for an all-gather. Partial sums are float32, as the modules here reduce them.
- Memory is weights, cache, and the two score tensors of one row's prefill in one layer. What the Neuron runtime and
  compiler take is not known and not counted.
- Price: as many replicas as there are groups of tp cores on the instance, all busy.

A report of `{HOW}`
(one operation and rank count per file) replaces latency and link rate: `tp-harness model --nccom FILE`.

## Constants
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD, _constants().markdown(), "", "## Fit", "", _fit_text(), ""]
    for title, rows in (("Time per token", decode_fit()), ("Time to the first token", prefill_fit())):
        table = fit_table(title, rows)
        parts += [f"### {title}", "", _errors(rows), "", table.markdown(), ""]
    for name, model in real_models().items():
        prediction = predict(model, name=name)
        parts += [f"## {name}", ""]
        for table in tables(prediction):
            parts += [f"{table.title[0].upper()}{table.title[1:]}:", "", table.markdown(), ""]
        parts += [f"- {line}" for line in ending(prediction)[:-1]] + [""]
    return "\n".join(parts)


def _constants() -> TextTable:
    return TextTable(
        title="constants",
        headers=("constant", "value", "unit", "source"),
        rows=tuple((f"`{name}`", f"{c.value:.4g}", c.unit, c.source) for name, c in ALL.items()),
        left=4,
    )


def _fit_text() -> str:
    weights, cache, boundary = fit_decode()
    efficiency, score = fit_prefill()
    blind = fit_decode([row for row in ROWS if "70" not in row.model])[0]
    return f"""\
All {len(ROWS)} rows of the published table are used, with one weight each (least squares on relative errors; \
`published.py` holds them with their source; of Llama-3-70B at 256, whose P50 is above its P99 in the table, the \
smaller is taken). Time per token gives {weights / 1e9:.1f} GB/s for weights \
({weights / CORE_HBM.value:.0%} of the peak), {cache / 1e9:.1f} GB/s for the cache and {boundary * 1e6:.1f} us per \
reduction; time to the first token gives {efficiency:.0%} of the peak and {score * 1e12:.0f} ps per score.

The last column of the first table fits the same formula without any row of that model. Half of the rows are 70B models:
without them the rate for weights is no longer determined (it becomes {blind / 1e9:.0f} GB/s), so the fit interpolates
between 7B and 70B and says little outside."""


def _errors(rows: Sequence[FitRow]) -> str:
    text = f"Error: {_spread([row.error for row in rows])}"
    blind = [abs(row.left_out_error) for row in rows if row.left_out_error is not None]
    return f"{text}; not fitted to the row's model: largest {max(blind):.1%}." if blind else f"{text}. {_start()}"


def _start() -> str:
    """A sentence on how a further term would change the time to the first token, and why it is not used."""
    start, errors = prefill_with_start()
    return f"""\
Short prompts take longer than the model says. A term of its own for every prompt, \
{start * 1e3:.1f} ms,
would fit them ({_spread(errors)}), but nothing published says what it is, and long prompts stay as far
off: it is left out."""


def _spread(errors: Sequence[float]) -> str:
    sizes = sorted(map(abs, errors))
    return f"median {sizes[len(sizes) // 2]:.1%}, largest {sizes[-1]:.1%}"


def main(argv: Sequence[str]) -> int:
    """Write the page to the file `argv[0]`, by default docs/trn1-model.md; returns exit code 0."""
    path = Path(argv[0]) if argv else PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
