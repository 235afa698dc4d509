"""Writes the sample output in README.md and docs/report.png: ``make sample``, or ``python docs/sample.py``.

Runs scenarios/quickstart.yaml and puts what it prints between README's markers. The picture is the first screen of the
report as headless Chromium draws it, 1,280 pixels wide; without Chromium the old one stays.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "report.png"
BEGIN, END = "<!-- sample: begin (make sample) -->\n```\n", "```\n<!-- sample: end -->"
WIDTH = 1280
PROBE = (
    "<script>addEventListener('load', () => { document.title ="
    " 'bottom ' + Math.ceil(document.getElementById('verdict').getBoundingClientRect().bottom) })</script></body>"
)


def printed() -> str:
    """What the command prints into a pipe, trailing blanks apart."""
    command = [sys.executable, "-m", "simulator.cli", "run", "scenarios/quickstart.yaml"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def with_sample(readme: str, text: str) -> str:
    """README with the sample between its markers replaced."""
    before, rest = readme.split(BEGIN, 1)
    return before + BEGIN + text + END + rest.split(END, 1)[1]


def draw(report: Path, picture: Path, chromium: str) -> None:
    """The page from its top to the end of the verdict's section."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "probed.html"
        page.write_text(report.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
        found = re.search(r"<title>bottom (\d+)</title>", browse(chromium, folder, 1000, "--dump-dom", page.as_uri()))
        if found is None:
            raise SystemExit("Chromium did not run the page that measures the report.")
        height = int(found[1]) + 24
        browse(chromium, folder, height, f"--screenshot={picture}", report.resolve().as_uri())


def browse(chromium: str, folder: str, height: int, *arguments: str) -> str:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync"]
    options += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"]
    command = [chromium, *options, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S603


def main() -> None:
    text = printed()
    README.write_text(with_sample(README.read_text(encoding="utf-8"), text), encoding="utf-8")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        print("README.md written; no Chromium here, so docs/report.png stays as it is.")
        return
    report = ROOT / re.findall(r"^Report: (.*)$", text, flags=re.MULTILINE)[0]
    draw(report, PICTURE, chromium)
    print(f"README.md and docs/report.png written ({PICTURE.stat().st_size:,} bytes).")


if __name__ == "__main__":
    main()
