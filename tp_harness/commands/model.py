"""`tp-harness model`: what a model would cost on Trn1, modelled."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from rich.console import Console

from ..config.divisibility import check_degrees
from ..config.model import PLANS
from ..config.options import TRN1_CORES, check_distinct_degrees, check_range, parse_degrees
from ..errors import UsageError
from ..models import families, family_of, load_model, presets, real_models

NAME = "model"
HELP = f"what {families()[0].title} would cost on Trn1 (model, not measured)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    from ..trn1.constants import PRICE  # noqa: PLC0415

    add = parser.add_argument
    add("--model", default=next(iter(real_models())), help=f"{', '.join(presets())} or a config.json")
    add("--tp", default="1,2,8,32", metavar="1,2,8,32", help="tp_degrees, comma-separated")
    add("--plan", default="tp", choices=PLANS, help="how it is shared out; default: tp")
    add("--batch", type=int, default=1, metavar="B", help="rows")
    add("--seq", type=int, default=1024, metavar="S", help="tokens of prompt (prefill) or cache (decode)")
    add("--nccom", type=Path, action="append", default=[], metavar="FILE", help="measured collectives: a JSON report "
        "of nccom-test; repeatable")  # fmt: skip
    add("--price", type=float, default=PRICE.value, metavar="USD", help="per hour of a trn1.32xlarge")
    add("--json", action="store_true", help="print the numbers as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the model's tables; returns exit code 0.

    Raises:
        UsageError: an option, config or nccom-test report that cannot be.
    """
    from ..results.result import to_json  # noqa: PLC0415
    from ..trn1 import MODELLED  # noqa: PLC0415
    from ..trn1.collectives import read_nccom  # noqa: PLC0415
    from ..trn1.predict import predict  # noqa: PLC0415
    from ..trn1.view import terminal  # noqa: PLC0415

    config, degrees = load_model(arguments.model), parse_degrees(arguments.tp)
    if not family_of(config).work:
        raise UsageError(f"nothing is known of what {family_of(config).title} costs on Trn1; choose another --model.")
    check_range("--batch", arguments.batch)
    check_range("--seq", arguments.seq)
    check_distinct_degrees(degrees, TRN1_CORES)
    check_degrees(config, family_of(config).requirements, tuple(family_of(config).components), degrees)
    if not 0 < arguments.price < math.inf:
        raise UsageError(f"--price is {arguments.price:g}; a positive number of dollars per hour is needed.")
    prediction = predict(
        config,
        name=arguments.model,
        degrees=degrees,
        batch=arguments.batch,
        seq=arguments.seq,
        plan=arguments.plan,
        collectives=read_nccom(arguments.nccom),
        price_per_hour=arguments.price,
    )
    if arguments.json:
        print(json.dumps({"what": MODELLED, **to_json(prediction)}, indent=1))
    else:
        Console().print(terminal(prediction), soft_wrap=True)
    return 0
