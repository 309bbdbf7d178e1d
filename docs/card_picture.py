"""docs/card.png: the card of tests/golden/real_run.json as a browser shows it.

    python docs/card_picture.py

Needs Chromium on the path, and markdown-it-py, which rich brings along.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image, ImageChops

from rnp_hub.hub_cards import write_card
from rnp_hub.report import RunReport

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "tests" / "golden" / "real_run.json"
WIDTH, HEIGHT = 880, 6000
"""Pixels of the window; what the page leaves empty of its height is cut off."""
STYLE = """
body { margin: 28px 40px; font: 16px/1.5 "Liberation Sans", Helvetica, sans-serif; color: #1f2328 }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; margin: 24px 0 16px }
h1 { font-size: 2em } h2 { font-size: 1.5em } h3 { font-size: 1.25em; margin: 24px 0 12px }
p, ul, table, pre, details, blockquote { margin: 0 0 16px }
li { margin-top: .25em } li p { margin: 0 }
a { color: #0969da; text-decoration: none } img { max-width: 100% }
code { font: 85% "DejaVu Sans Mono", monospace; background: #818b981f }
code { padding: .2em .4em; border-radius: 6px }
pre { background: #f6f8fa; padding: 16px; border-radius: 6px; overflow: hidden }
pre code { background: none; padding: 0; white-space: pre-wrap }
blockquote { border-left: .25em solid #d1d9e0; padding: 0 1em; color: #59636e }
blockquote p { margin: 0 }
table { border-collapse: collapse } th, td { border: 1px solid #d1d9e0; padding: 6px 13px }
tr:nth-child(2n) { background: #f6f8fa }
"""


def page(readme: str) -> str:
    """The card as HTML, without its metadata."""
    body = re.sub(r"\A---\n.*?\n---\n", "", readme, flags=re.DOTALL)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{html}"


def photograph(html: Path, picture: Path) -> None:
    """Have Chromium lay the page out and keep what it shows, in 128 colours."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("there is no chromium on the path; install it to take the picture")
    shot = html.with_suffix(".png")
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--hide-scrollbars", f"--user-data-dir={html.parent / 'profile'}",
            f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", html.as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as whole:
        page_ = whole.convert("RGB")
    written = ImageChops.difference(page_, Image.new("RGB", page_.size, "white")).getbbox()
    bottom = min(written[3] + 28, HEIGHT) if written else HEIGHT
    page_.crop((0, 0, WIDTH, bottom)).quantize(128, dither=Image.Dither.NONE).save(
        picture, optimize=True
    )


def main() -> None:
    """Card, page, picture."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_card(place, RunReport.from_json(REPORT.read_bytes()))
        html = place / "card.html"
        html.write_text(page((place / "README.md").read_text("utf-8")), encoding="utf-8")
        photograph(html, ROOT / "docs" / "card.png")


if __name__ == "__main__":
    main()
