"""docs/report.png: the head of a real report, as docs/report.md shows it. `make screenshot` runs this.

python tests/support/screenshot.py RUN_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from browser import chromium, lacking

from tp_harness.report import write_pages
from tp_harness.results.run_record import read_run

PICTURE = Path(__file__).parents[2] / "docs" / "report.png"
WIDTH, HEIGHT = 1200, 1330  # the verdicts and the first charts


def main(run: Path) -> None:
    """Render the run's page again and take its picture."""
    page = write_pages(read_run(run))[0]
    with chromium() as browser, browser.opened(page, width=WIDTH, height=HEIGHT) as shown:
        shown.page.wait_for_selector("figure.drawn .main-svg")
        shown.page.screenshot(path=PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    reason = lacking()
    sys.exit(reason) if reason else main(Path(sys.argv[1]))
