"""What the tests of pages share: stored runs, their pages, and what a browser would find in one."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tp_harness.report import PAGES, html
from tp_harness.report.kills import read_trials
from tp_harness.results.result import Collective, Forwards, RankRecord
from tp_harness.results.run_record import RunRecord, read_run

RUNS = Path(__file__).parents[1] / "report_runs"
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


def row_text(page: str, record: RunRecord, index: int) -> str:
    """What stands under one result's heading."""
    start = page.index(f'id="{html.row_id(record.results[index])}"')
    return page[start : page.index("</details>", start)]


def forwards(*wall: float, inside: float = 0.0, warm: bool = True) -> Forwards:
    return Forwards(wall_s=wall, cpu_s=(0.5,) * len(wall), collective_s=(inside,) * len(wall), warm=warm)


def rank(number: int, timed: Forwards | None, **values: Any) -> RankRecord:
    call = Collective(kind="all_reduce", group_size=2, shape=(2,), dtype="float32", bytes=8, seconds=0.25)
    fields: dict[str, Any] = {"weight_bytes": 100, "peak_bytes": 7, "collectives": (call, call), "flops": 10}
    return RankRecord(rank=number, core="c", wall_s=1.0, cpu_s=1.0, forwards=timed, **(fields | values))
