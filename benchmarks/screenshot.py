"""Takes a picture of a page with the browser that the tests use, such as the one in docs/.

    plan report --model llama-3.2-1b --seq-len 512 --gpus h200,h100,l40s,a100-80gb,rtx-4090 --tokens 100M \\
        --deadline 24h --prices nebius-2025-08-12 --power-price 0.20 --pue 1.4 \\
        --store docs/example/measurements.sqlite --sweep docs/example/sweep.jsonl --output plan.html
    python benchmarks/screenshot.py plan.html docs/capacity.png
    python benchmarks/screenshot.py plan.html docs/capacity-sweep.png --at "The sweep" --height 640
"""

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1200, 1560


def take(page: Path, picture: Path, *, dark: bool, width: int, height: int, at: str | None) -> None:
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or playwright.chromium.executable_path
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("#cost-chart svg.main-svg")
        if at is not None:
            tab.get_by_role("heading", name=at).evaluate("heading => heading.scrollIntoView()")
            tab.wait_for_timeout(500)
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--at", help="a heading to scroll to")
    words = parser.parse_args()
    take(words.page, words.picture, dark=words.dark, width=words.width, height=words.height, at=words.at)
