"""How long the frontier's page takes to show another point, in headless Chromium.

    python -m tests.benchmarks.page [--points 10000] [--choices 500]

Milliseconds of drawing on the CPU, the page's own clock; with details of sixty points, as a sweep writes them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.page import write_page
from sdm_ray.frontier.details import Details, Extras
from sdm_ray.frontier.points import Point

NUMBERS, FAMILIES, NUM_DETAILED = (20, 50, 100, 200), ("fine_tune", "rescale", "token_probe"), 60
SCRIPT = """
  const taken = [];
  for (let i = 0; i < CHOICES; i++) {
    const p = shown[(i * 37) % shown.length], start = performance.now();
    choose(p); taken.push(performance.now() - start);
  }
  taken.sort((a, b) => a - b);
  document.body.append(element("pre", `median ${taken[taken.length >> 1]} most ${taken[taken.length - 1]}`));
"""


def made_up(count: int) -> tuple[list[Point], Extras]:
    """Points of two searched settings, with a trade-off and noise."""
    generator = np.random.default_rng(0)
    points = []
    for index, (weight, rate, noise) in enumerate(generator.random((count, 3))):
        harmful = 0.9 - 0.3 * weight + 0.05 * noise
        points.append(
            Point(
                trial_id=f"t{index:05d}",
                method="mlac",
                desired=0.98 - 0.1 * weight - 0.02 * noise,
                harmful=harmful,
                params={
                    "train.blocking.harmful_adapted_calibrated": 8 * weight,
                    "train.learning_rate": 10 ** -(2 + rate),
                },
                metrics={str(Metric.harmful_accuracy(n)): harmful - 0.1 + n / 2000 for n in NUMBERS},
                harmful_interval=(harmful - 0.03, harmful + 0.03),
            )
        )
    found = {family: {str(n): 0.5 + 0.001 * n for n in NUMBERS} for family in FAMILIES}
    details = {point.trial_id: Details(model=f"trials/{point.trial_id}/model", found=found) for point in points}
    return points, Extras(details=dict(list(details.items())[:NUM_DETAILED]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--choices", type=int, default=500)
    options = parser.parse_args(arguments)
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("chromium is not installed")
    points, extras = made_up(options.points)
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(points, Path(folder) / "page.html", title="made up", extras=extras)
        script = SCRIPT.replace("CHOICES", str(options.choices))
        page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        size = page.stat().st_size
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000", "--dump-dom"]
        command += [f"--user-data-dir={folder}/profile", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r"<pre>median ([0-9.]+) most ([0-9.]+)</pre>", shown)
    if found is None:
        sys.exit(f"the page did not answer: {shown[-500:]}")
    print(
        f"{options.points} points, {size / 1e6:.1f} MB: {float(found[1]):.1f} ms a choice (median of "
        f"{options.choices}), at most {float(found[2]):.1f} ms"
    )


if __name__ == "__main__":
    main()
