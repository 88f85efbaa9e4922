"""Writes the tables and figures of the frontier on a separate thread, so that the driver is not blocked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sdm_ray.frontier.details import Details, Extras
from sdm_ray.frontier.points import Point, pareto_front
from sdm_ray.frontier.tables import write_tables

PAGE = "frontier.html"
"""File name of the interactive page."""
BUSY_SHARE = 0.05
"""Maximum fraction of a sweep's time for writing the frontier's files, which slows the driver down."""
CLOSE_SECONDS = 60.0
"""Maximum time to wait for the last files at the end of a sweep."""
PUBLISH_SECONDS = 60.0
"""Interval at which the files are sent to the tracker while a sweep runs."""


class FrontierWriter:
    """Writes the files for the latest points; intermediate points are skipped if writing takes longer than updates.

    Args:
        folder: folder for the files.
        warn: shows a warning.
        pause_seconds: minimum pause after the files are written.
        publish: called with the files every `PUBLISH_SECONDS` while the sweep runs.
        details: returns the details of points that the page shows, by id.
    """

    def __init__(
        self,
        folder: Path,
        *,
        warn: Callable[[str], None],
        pause_seconds: float = 5.0,
        publish: Callable[[list[Path]], None] = lambda files: None,
        details: Callable[[Sequence[Point]], Mapping[str, Details]] = lambda points: {},
    ) -> None:
        self._folder = folder
        self._warn = warn
        self._pause = pause_seconds
        self._publish, self._published = publish, -PUBLISH_SECONDS
        self._details = details
        self._lock = threading.Lock()
        self._points: list[Point] | None = None
        self._wake = threading.Event()
        self._closing = False
        self._warned = False
        self.files: list[Path] = []
        self.importances: dict[str, dict[str, float]] = {}
        """Importances of the searched settings by objective, for the page; set before the last update."""
        self._thread = threading.Thread(target=self._run, name="sdm-ray-frontier", daemon=True)
        self._thread.start()

    def update(self, points: list[Point]) -> None:
        """Set the points that the thread writes next."""
        with self._lock:
            self._points = points
        self._wake.set()

    def close(self) -> None:
        """Write pending points, and end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            with self._lock:
                points, self._points = self._points, None
            started = time.monotonic()
            if points:
                self._write(points)
            if closing:
                return
            now = time.monotonic()
            deadline = now + max(self._pause, (now - started) / BUSY_SHARE)
            while not self._closing and time.monotonic() < deadline:
                time.sleep(0.1)

    def _write(self, points: list[Point]) -> None:
        try:
            from sdm_ray.figures.curves import Curve, attack_curves_figure
            from sdm_ray.figures.frontier import frontier_figure
            from sdm_ray.figures.kept import FIGURE, kept_figure
            from sdm_ray.figures.page import write_page
            from sdm_ray.figures.style import model_styles

            extras = Extras(importances=self.importances, details=self._details(points))
            files = [
                *write_tables(points, self._folder, extras=extras),
                frontier_figure(points, self._folder / "frontier.png"),
                write_page(points, self._folder / PAGE, title=self._folder.name, extras=extras),
            ]
            shown = [*pareto_front(points)[:1], *(point for point in points if point.is_reference)]
            curves = [Curve.from_point(point) for point in shown]
            curves = [curve for curve in curves if curve.num_examples]
            if curves:
                styles = model_styles(point.trial_id for point in points if point.is_reference)
                files.append(attack_curves_figure(curves, self._folder / "attack_curves.png", styles=styles))
            shares = kept_figure(points, self._folder / FIGURE)
            files += [] if shares is None else [shares]
            self.files = files
            if not self._closing and time.monotonic() - self._published >= PUBLISH_SECONDS:
                self._published = time.monotonic()
                self._publish(files)
        except Exception as error:
            if not self._warned:
                self._warned = True
                self._warn(
                    f"the frontier's files could not be written ({error}); they are at the next result or --resume"
                )
