"""The frontier's page: what is in it, that it loads nothing and runs nothing foreign, and that a browser shows it."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdm_ray.core.metric_names import Metric
from sdm_ray.figures.page import page_data, write_page
from sdm_ray.frontier.details import Details, Extras
from sdm_ray.frontier.points import Point, hypervolume
from sdm_ray.frontier.tables import read_extras, write_tables


def point(name: str, desired: float, harmful: float, **changes: Any) -> Point:
    metrics = {Metric.harmful_accuracy(n): harmful - 0.1 + n / 1000 for n in (20, 200)}
    return Point(
        trial_id=name,
        method=changes.pop("method", "mlac"),
        desired=desired,
        harmful=harmful,
        metrics=metrics,
        **changes,
    )


POINTS = [
    point("tuned", 0.96, 0.8, method="tuned", is_reference=True),
    point("random", 0.5, 0.5, method="random", is_reference=True),
    point("t0", 0.95, 0.6, params={"rate": 1e-3, "sizes": [8, 16]}, harmful_interval=(0.55, 0.65)),
    point("t1", 0.90, 0.52, params={"rate": 1e-2}),
    point("t2", 0.90, 0.7),
    point("t6", 0.93, 0.62, harmful_interval=(0.59, 0.65)),
    point("t3", 0.94, 0.51, superseded=True),
    point("t4", 0.20, 0.5, feasible=False),
    point("t5", 0.93, math.nan, feasible=False),
]


def in_browser(path: Path, script: str, folder: Path, width: int = 1280) -> str:
    """The page's document after a script has run at its end."""
    path.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000", "--dump-dom"]
    command += [f"--user-data-dir={folder}/profile", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def test_the_page_says_what_each_point_is() -> None:
    data = page_data(POINTS, title="s")
    kinds = {entry["id"]: entry["kind"] for entry in data["points"]}
    assert kinds == {
        "tuned": "reference", "random": "reference", "t0": "front", "t1": "front", "t2": "dominated", "t6": "near",
        "t3": "superseded", "t4": "infeasible", "t5": "infeasible",
    }  # fmt: skip
    assert data["numbers"] == [20, 200]
    assert data["points"][2]["curve"] == [[pytest.approx(0.52), None, None], [pytest.approx(0.7), None, None]]
    assert data["points"][-1]["y"] is None
    assert data["points"][-1]["seconds"] is None
    timed = dataclasses.replace(POINTS[2], metrics={"cost/train_seconds": 12.5, "cost/train_texts": 30.0})
    (entry,) = page_data([timed], title="s")["points"]
    assert (entry["seconds"], entry["training"]) == (12.5, [30.0, None])
    assert data["params"] == ["rate", "sizes"]
    assert data["growth"][0] == [1, hypervolume(POINTS[2:3])]
    assert [number for number, _ in data["growth"]] == [1, 2, 3, 4, 5, 6, 7], "every trial of a small sweep"
    assert data["growth"][-1] == [7, hypervolume(POINTS)]
    json.dumps(data, allow_nan=False)


def test_nothing_is_loaded_and_no_name_becomes_code(tmp_path: Path) -> None:
    evil = point("</script><script>alert(1)</script>", 0.9, 0.5, params={"<b>": "<!--"})
    text = write_page([evil], tmp_path / "page.html", title="<i>s</i>").read_text()
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "default-src 'none'" in text
    assert "alert(1)</script>" not in text
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["points"][0]["id"] == evil.trial_id


EVIL = "<img src=x onerror=alert(1)>"
DETAILS = {
    "t0": Details(
        reason=f"the audit failed {EVIL}", failed={"label_leak": EVIL}, uninformative={"collapse": "random fails too"},
        model=f"trials/{EVIL}/model", run="1f2e", run_url="http://127.0.0.1:5000/#/runs/1f2e",
        found={"fine_tune": {"20": 0.5}, "token_probe": {"20": 0.52, "200": 0.7}},
    ),
    "t1": Details(run="9a", run_url="javascript:alert(1)"),
}  # fmt: skip


def test_details_come_back_from_the_tables_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    write_tables(POINTS, tmp_path, extras=Extras(importances={"harmful": {"rate": 0.5}}, details=DETAILS))
    found = read_extras(tmp_path)
    assert (found.details, found.importances) == (DETAILS, {"harmful": {"rate": 0.5}})
    document = json.loads((tmp_path / "frontier.json").read_text())
    document["details"]["t1"] = {"unknown": 1}
    (tmp_path / "frontier.json").write_text(json.dumps(document))
    assert read_extras(tmp_path).details == {"t0": DETAILS["t0"]}
    del document["details"]
    (tmp_path / "frontier.json").write_text(json.dumps(document))
    assert read_extras(tmp_path).details == {}, "tables of before"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_details_of_the_chosen_point_as_text(tmp_path: Path) -> None:
    costly = [dataclasses.replace(one, metrics=one.metrics | {"cost/attack_seconds": 12345678.0}) for one in POINTS]
    path = write_page(costly, tmp_path / "page.html", title="s", extras=Extras(details=DETAILS))
    script = """
      const seen = id => { choose(D.points.find(p => p.id === id)); return $("detail").innerHTML; };
      document.body.append(element("pre", JSON.stringify({t0: seen("t0"), t1: seen("t1"), t2: seen("t2"), width: $("parallel").clientWidth, small: [tidy(0.000312), tidy(0.25), tidy(0)]})));
    """  # noqa: E501
    page = in_browser(path, script, tmp_path)
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1]))  # type: ignore[index]
    assert html.escape(f"the audit failed {EVIL}", quote=False) in found["t0"]
    assert "<img" not in found["t0"]
    assert f"label leak: {html.escape(EVIL, quote=False)}" in found["t0"]
    assert "collapse: random fails too" in found["t0"]
    assert '<a href="http://127.0.0.1:5000/#/runs/1f2e" target="_blank" rel="noopener">1f2e</a>' in found["t0"]
    cells = re.findall(r"<td class=\"(\w*)\"[^>]*>([^<]+)</td>", found["t0"])
    assert cells == [("", "0.500"), ("", "–"), ("best", "0.520"), ("best", "0.700")]
    assert "<a " not in found["t1"], "an address that is none is no link"
    assert ">9a<" in found["t1"]
    assert "1.23e7 s" in found["t0"]
    assert "MLflow" not in found["t2"]
    assert found["small"] == ["3.12e-4", "0.25", "0"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_on_a_narrow_screen_the_headings_of_the_settings_do_not_touch(tmp_path: Path) -> None:
    many = [
        dataclasses.replace(one, params={f"train.setting_{index}": 0.1 * index for index in range(8)}) for one in POINTS
    ]
    path = write_page(many, tmp_path / "page.html", title="s")
    script = 'document.body.append(element("pre", `${$("parallel").clientWidth} ${axes.length}`));'
    found = re.search(r"<pre>(\d+) (\d+)</pre>", in_browser(path, script, tmp_path, width=400))
    assert found
    assert int(found[1]) >= 80 * int(found[2])


def test_no_trial_is_a_page_too(tmp_path: Path) -> None:
    assert write_page([], tmp_path / "page.html", title="s").exists()


def test_the_page_is_drawn_again_whenever_its_width_changes(tmp_path: Path) -> None:
    """A frame of MLflow gets its width after the page is loaded, and no `resize` comes."""
    assert "new ResizeObserver(draw)" in write_page(POINTS, tmp_path / "page.html", title="s").read_text()


def test_the_chosen_curve_is_solid_and_references_are_dashed(tmp_path: Path) -> None:
    assert (
        "setLineDash(p === chosen ? [] : [5, 4])" in write_page(POINTS, tmp_path / "page.html", title="s").read_text()
    )


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("measured", [True, False])
def test_a_browser_picks_from_what_is_kept_and_hides_it_where_it_is_unknown(tmp_path: Path, measured: bool) -> None:
    shares = {"kept/benign": 0.8, "kept/harmful": 0.3, "kept/harmful/low": 0.25, "kept/harmful/high": 0.4}
    points = [
        dataclasses.replace(
            one, metrics=shares | {"scratch/dominates": 1.0} if measured and one.trial_id == "t2" else {}
        )
        for one in POINTS
    ]
    path = write_page(points, tmp_path / "page.html", title="s")
    script = """
      const a = keptAt.find(a => a.p.id === "t2"), box = $("kept").getBoundingClientRect();
      if (a) $("kept").dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + a.x, clientY: box.top + a.y}));
      const kept = $("facts").textContent.match(/kept.*?]/g);
      document.body.append(element("pre", `name ${$("name").textContent}; facts ${kept}; hidden ${$("kept-section").hidden}; ${box.height}`));
    """  # noqa: E501
    page = in_browser(path, script, tmp_path)
    found = re.search(r"name (.*?); facts (.*?); hidden (.*?); (\d+)</pre>", page)
    assert found, page[-2000:]
    if measured:
        assert found[1] == "t2 (no better than scratch)"
        assert found[2] == "kept on benign tasks0.800kept on the harmful task0.300 [0.250, 0.400]"
        assert (found[3], found[4]) == ("false", "430")
    else:
        assert (found[2], found[3], found[4]) == ("null", "true", "0")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("count", [0, 10_000])
def test_a_browser_shows_the_curve_of_the_point_that_is_clicked(tmp_path: Path, count: int) -> None:
    """A click on a dominated point, then a key; alone, and among ten thousand others."""
    crowd = [point(f"c{index}", 0.86 + 1e-6 * index, 0.75, params={"rate": 1e-3}) for index in range(count)]
    shares = {"desired/accuracy": {"train.rate": 0.75, "sizes": 0.25}}
    path = write_page([*POINTS, *crowd], tmp_path / "page.html", title="s", extras=Extras(importances=shares))
    script = """
      const a = at.find(a => a.p.id === "t2"), box = $("map").getBoundingClientRect();
      $("map").dispatchEvent(new MouseEvent("click", {clientX: box.left + a.x, clientY: box.top + a.y}));
      const clicked = $("name").textContent, start = performance.now();
      for (let i = 0; i < 50; i++) choose(i % 2 ? front[0] : front[1]);
      const spent = (performance.now() - start) / 50;
      $("map").focus(); $("map").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
      document.body.append(element("pre", `clicked ${clicked}; key ${$("name").textContent}; ${spent} ms`));
    """
    shown = in_browser(path, script, tmp_path)
    found = re.search(r"clicked (.*?); key (.*?); ([0-9.]+) ms</pre>", shown)
    assert found, shown[-2000:]
    assert found[1] == "t2 (dominated)"
    assert found[2] == "t0 (on the frontier)"
    assert re.search(r"<dt>rate</dt><dd><i style=\"width: 75%;\"></i></dd><dd>0.75</dd><dt>sizes</dt>", shown)
    print(f"{count} points: {float(found[3]):.1f} ms a change of the chosen one")
    assert shown.count("<tr data-id=") == (len(POINTS) if count == 0 else 2 + 2), "of many, those that count"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_sorts_filters_and_writes_the_table_of_all_trials(tmp_path: Path) -> None:
    crowd = [point(f"c{index}", 0.5 + 1e-4 * index, 0.75, params={"note": '=1+"1"'}) for index in range(300)]
    path = write_page([*POINTS, *crowd], tmp_path / "page.html", title="s")
    script = """
      const ids = () => [...document.querySelectorAll("tbody tr")].map(r => r.dataset.id), first = ids().length;
      $("kind").value = "all"; $("kind").dispatchEvent(new Event("change"));
      const all = [ids().length, $("count").textContent];
      $("filter").value = "C29"; $("filter").dispatchEvent(new Event("input"));
      const head = [...document.querySelectorAll("thead th")].find(th => th.textContent === "desired");
      head.click(); const rising = ids()[0]; head.click(); const falling = ids()[0];
      const lines = csv().trim().split("\\r\\n");
      const told = [first, all, rising, falling, lines.length, lines[1]];
      document.body.append(element("pre", `found ${JSON.stringify(told)}`));
    """
    shown = in_browser(path, script, tmp_path, width=400)
    found = re.search(r"found (\[.*\])</pre>", shown)
    assert found, shown[-2000:]
    first, all_rows, rising, falling, lines, line = json.loads(html.unescape(found[1]))
    assert first == 4
    assert all_rows == [200, f"the first 200 of {len(POINTS) + 300}"]
    assert (rising, falling) == ("c29", "c299")
    assert lines == 1 + 11, "the heading, c29 and c290 to c299, whatever is on the screen"
    assert line.startswith("c299,dominated,")
    assert '"\'=1+""1"""' in line, "no spreadsheet takes it for a formula"
