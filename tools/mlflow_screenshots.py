"""Take the pictures of the MLflow guide again: ``python tools/mlflow_screenshots.py``.

Without arguments the smoke suite is run with three seeds, and three of its methods are tuned, in a temporary folder:
about ten minutes on two cores.  ``--mlruns`` takes what an earlier run mirrored, which is copied first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote_plus

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flr_bench.tracking.views import view_key  # noqa: E402 - found once the root is on the path
from tests.chromium import Page, browser  # noqa: E402
from tests.mlflow_server import serving  # noqa: E402

OUT = ROOT / "docs" / "assets" / "mlflow"
SUITE, TUNED = "smoke", "single_latent,sasrec,flr"
SETTLE = 2.0
WIDTH, HEIGHT = 1400, 860
COLOURS = 96  # of a picture: pages of text and a few charts need no more, and files stay small


def mirrored(folder: Path) -> Path:
    """Run and tune the smoke suite below ``folder``; returns its ``mlruns``."""
    for command in (
        ["run", "--suite", SUITE, "--seeds", "3", "--quiet"],
        ["tune", "--suite", SUITE, "--trials", "10", "--only", TUNED, "--quiet"],
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        cli = [sys.executable, "-m", "flr_bench.cli", *command]
        subprocess.run(cli, cwd=folder, env=environment, check=True)  # noqa: S603 - our own command
    return folder / "mlruns"


def experiments(mlruns: Path) -> dict[str, str]:
    """Ids of the experiments by name."""
    from flr_bench.tracking import Tracker

    found = Tracker(f"sqlite:///{mlruns}/mlflow.db", mlruns).client.search_experiments()
    return {experiment.name: str(experiment.experiment_id) for experiment in found}


class Guide:
    """The pictures, one method each.

    Args:
        browser: which takes them.
        address: of the server.
        ids: of the experiments.
        out: folder of the pictures.
    """

    def __init__(self, browser: Page, address: str, ids: dict[str, str], out: Path) -> None:
        """Nothing is opened yet."""
        self.browser, self.address, self.ids, self.out = browser, address, ids, out

    def open(self, experiment: str, query: str = "") -> None:
        """An experiment's list of runs, once it is drawn."""
        address = f"{self.address}/#/experiments/{self.ids[experiment]}/runs{query}"
        self.browser.go(address, width=WIDTH, height=HEIGHT)
        self.browser.wait("document.body.innerText.includes('matching runs')")
        self.browser.settle(SETTLE)

    def view(self, experiment: str, name: str, chart: bool) -> None:
        """One of the views, as a table or as charts."""
        self.open(experiment, f"?viewStateShareKey={view_key(name)}" + ("&compareRunsMode=CHART" if chart else ""))
        # The banner over a view and the open toolbar of every chart hide what the picture is about.
        self.browser.run(
            "document.head.insertAdjacentHTML('beforeend', '<style>.modebar {display: none !important}</style>')"
        )

    def take(self, name: str) -> None:
        """Write what is shown."""
        from PIL import Image

        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{name}.png"
        self.browser.screenshot(file, whole=False)
        with Image.open(file) as shot:
            few = shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
        sys.stdout.write(f"{name}.png {file.stat().st_size // 1024} kB\n")

    def all(self) -> None:
        """Every picture of the guide."""
        suite, tuning = f"{SUITE}@1", f"{SUITE}@1 tuning"
        self.open(suite)
        self.browser.run("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
        self.open(suite)
        self.browser.wait("document.querySelector('[data-testid=saved-views-trigger]')")
        self.browser.click("[data-testid=saved-views-trigger]")
        self.browser.settle(SETTLE)
        self.take("views")
        self.view(suite, "Rankings, best first", chart=False)
        self.take("rankings")
        self.view(suite, "Rows, means over seeds", chart=True)
        self.search("tags.kind = 'rank' and tags.row LIKE '% · sft+rl · plain'")
        self.take("seeds")
        self.view(suite, "Training curves", chart=True)
        self.search("tags.kind = 'fit' and tags.stage = 'rl'")
        self.take("curves")
        self.view(tuning, "tune single_latent · ml-100k · cpu", chart=True)
        self.take("tuning")

    def search(self, text: str) -> None:
        """Put a filter into the field above the list; by the address, as its key for Enter is at times not heard."""
        found = "document.body.innerText.match(/\\d+ matching runs/)[0]"
        before = self.browser.run(found)
        changed = f"location.hash.replace(/searchFilter=[^&]*/, 'searchFilter=' + {json.dumps(quote_plus(text))})"
        self.browser.run(f"location.hash = {changed}")
        self.browser.wait(f"{found} !== {json.dumps(before)}")
        self.browser.settle(SETTLE)


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description="take the MLflow guide's pictures")
    parser.add_argument("--mlruns", type=Path, help="what was mirrored of the smoke suite and its tuning")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = arguments.mlruns or mirrored(folder)
        copy = shutil.copytree(source, folder / "copy")
        (folder / "browser").mkdir()
        uri = f"sqlite:///{copy}/mlflow.db"
        with serving(uri, copy, folder) as address, browser(folder / "browser") as page:
            Guide(page, address, experiments(copy), arguments.out).all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
