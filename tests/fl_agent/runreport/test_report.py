"""The report of a run: one file that loads nothing, says what the figures mean, and looks right in a browser."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from playwright.sync_api import sync_playwright

from fl_agent.__main__ import main
from fl_agent.runreport import record, wording
from fl_agent.runreport.charts import charts
from fl_agent.runreport.page import render
from fl_agent.runreport.record import RunRecord

from .runs import a_round, a_run

CHROMIUM = shutil.which("chromium")
FORTY = dataclasses.replace(a_run(40), rounds=tuple(a_round(number) for number in range(1, 41)))


@pytest.fixture(scope="module")
def page() -> str:
    return render(FORTY)


@pytest.fixture(scope="module")
def wide_page() -> str:
    """What a browser has to find room for: eight tiles, one of 59 min 20 s, and a plan's hash."""
    rounds = (dataclasses.replace(one, seconds=89.0, metrics={**one.metrics, "accuracy": 0.8}) for one in FORTY.rounds)
    return render(dataclasses.replace(FORTY, rounds=tuple(rounds), settings={"plan": "5f" * 32}))


class Links(HTMLParser):
    """Everything that a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]


def labels(run: RunRecord) -> dict[str, str]:
    """The words of each chart, by its title; the drawing is well-formed."""
    return {one.title: " ".join(ET.fromstring(one.svg).itertext()) for one in charts(run)}


def test_the_report_is_one_file_that_loads_and_runs_nothing(page: str) -> None:
    links = Links()
    links.feed(page)
    assert len(links.targets) == 6
    assert all(target.startswith("data:image/svg+xml;base64,") for target in links.targets)
    assert not links.tags & {"script", "link", "iframe", "object"}
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert not any("url(" in style or "@import" in style for style in styles)
    for target in links.targets:
        svg = base64.b64decode(target.partition(",")[2]).decode()
        references = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', svg)
        assert all((one or other).startswith("#") for one, other in references)


def test_the_report_tells_figures_settings_and_that_it_is_no_medical_device(page: str) -> None:
    words = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).replace("&nbsp;", " ").split())
    for part in (
        "Not a medical device", "ε distributed (δ = 0.0001) 1.80", "ε of a site alone, largest (δ = 0.0001) 7.80",
        "AUC, pneumonia, last round 0.958", "rounds done, of 40 40", "in rounds, together 18 s",
        "patients drawn per step 25 %", "north clinic 3.800 616 kB 636 kB",
        "keep their share of the noise to themselves",
    ):  # fmt: skip
        assert part in words, part


def test_every_axis_has_its_unit_and_every_line_its_name() -> None:
    found = labels(FORTY)
    for title, part in {
        "Loss": "mean loss per patient, nats, with noise",
        "Figures on the sites' own rows": "share of 1, with noise",
        "Privacy spent": "ε spent per patient (δ = 0.0001)",
        "Sites in the sum": "sites in the sum, of 3",
        "Time": "seconds per round",
        "Bytes over the whole run": "616 kB up",
    }.items():
        assert part in found[title]
        assert title.startswith("Bytes") or "round" in found[title]
    assert all(f"{name} alone" in found["Privacy spent"] for name in FORTY.sites)
    assert "distributed" in found["Privacy spent"]


def test_sites_that_spent_the_same_are_one_line_and_noise_may_take_a_loss_below_zero() -> None:
    same = tuple(
        dataclasses.replace(one, epsilon=dict.fromkeys(FORTY.sites, 0.1 * one.round), loss=0.2 - 0.01 * one.round)
        for one in FORTY.rounds
    )
    found = labels(dataclasses.replace(FORTY, rounds=same))
    assert "each site alone" in found["Privacy spent"]
    assert "university alone" not in found["Privacy spent"]
    assert "−0.2" in found["Loss"]  # the axis reaches there


def test_a_run_without_privacy_claims_none() -> None:
    bare = tuple(
        dataclasses.replace(one, loss=None, metrics={}, epsilon={}, distributed_epsilon=None) for one in FORTY.rounds
    )
    run = dataclasses.replace(FORTY, mode="none", delta=0.0, rounds=bare)
    assert set(labels(run)) == {"Sites in the sum", "Time", "Bytes over the whole run"}
    written = render(run)
    assert "No noise was added" in written
    assert "ε" not in written


def test_the_least_and_the_largest_run_have_a_report() -> None:
    assert "No round is finished yet" in render(a_run())
    assert set(labels(dataclasses.replace(a_run(), rounds=(a_round(1),)))) == set(labels(FORTY))
    sites = tuple(f"site-{number}" for number in range(30))
    one = dataclasses.replace(a_round(1), epsilon=dict.fromkeys(sites, 1.0), bytes_up=dict.fromkeys(sites, 10))
    many = dataclasses.replace(a_run(), sites=sites, rounds=(one, dataclasses.replace(one, round=2)))
    assert "30 sites alone" in labels(many)["Privacy spent"]


def test_a_torn_record_is_named_and_a_name_cannot_write_the_page() -> None:
    run = dataclasses.replace(FORTY, torn=True, model="<script>alert(1)</script>", sites=("<b>x</b>",))
    written = render(run)
    assert "was cut short" in written
    assert "<script>" not in written
    assert "<b>" not in written


def test_the_command_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.append(tmp_path, a_run())
    record.append(tmp_path, a_round(1))
    out = tmp_path / "run.html"
    monkeypatch.setattr(sys, "argv", ["fl-agent", "report", str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert out.read_text() == render(record.read(tmp_path))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (wording.size(999), "999 B"), (wording.size(15_400), "15.4 kB"), (wording.size(999_600), "1 MB"),
        (wording.size(2.5e14), "250 TB"), (wording.span(0.4249), "0.42 s"), (wording.span(9.97), "10 s"),
        (wording.span(125), "2 min 5 s"), (wording.span(7384), "2 h 3 min"),
        (wording.moment(1_790_000_000), "2026-09-21 14:13 UTC"), (wording.metric("f1_score"), "f1 score"),
    ],
)  # fmt: skip
def test_figures_are_written_for_people(written: str, said: str) -> None:
    assert written == said


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package chromium)")
def test_a_browser_shows_every_picture_asks_nobody_and_needs_no_sideways_scrolling(
    page: str, wide_page: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.html"
    path.write_text(page, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        shown = "Array.from(document.images).every(one => one.complete && one.naturalWidth > 0)"
        assert tab.evaluate(shown)
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        path.write_text(wide_page, encoding="utf-8")
        tab.reload()
        for width in (1280, 1100, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            boxes = "Array.from(document.querySelectorAll('.tiles div, .sheet:has(.settings)'))"
            assert tab.evaluate(f"{boxes}.every(one => one.scrollWidth <= one.clientWidth)"), width
        browser.close()
