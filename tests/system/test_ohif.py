"""Our reports in a real OHIF, as a radiologist sees them: headless Chromium, nginx and Orthanc all run here."""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from secure_infer import report
from secure_infer.report import wording
from tests.secure_infer.report import samples
from tests.system.orthanc_server import OrthancServer, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = ROOT / "orthanc_config" / "ohif" / "serve.sh"
CACHE = ROOT / ".cache" / "ohif"
# Chromium without a GPU and without calls to its maker.
FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run"
)
GRID = '[data-cy="viewport-grid"]'
SERIES = '[data-cy="study-browser-thumbnail-no-image"]'
#: Corners of the polylines on screen, in pixels (column, row) of the image below them.
OUTLINES = """
() => {
  const viewport = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
  const toImage = point => window.cornerstone.utilities.worldToImageCoords(
    viewport.getCurrentImageId(), viewport.canvasToWorld(point));
  return [...document.querySelectorAll('[data-cy="viewport-grid"] svg.svg-layer polyline')].map(
    line => line.getAttribute('points').trim().split(/\\s+(?=\\S+,)/).map(p => toImage(p.split(',').map(Number))));
}
"""
PRESENT, ABSENT = samples.ANSWERS["present"], samples.ANSWERS["absent"]


@pytest.fixture(scope="module")
def study(orthanc: OrthancServer) -> str:
    """A study whose positive report a later, negative one replaces, each with its text; its Study Instance UID."""
    image = samples.source(name="Viewer^Vera", key="ohif")
    orthanc.upload(samples.part10(image))
    predecessor = None
    for number, answer in enumerate((PRESENT, ABSENT), start=1):
        analysed = [samples.analysed(image, answer)]
        options = {"seed": f"ohif {answer.answer}", "series_number": 9900 + 10 * number}
        measurements = samples.structured(analysed, predecessor=predecessor, **options)
        predecessor = report.Predecessor(
            measurements.SOPClassUID, measurements.SOPInstanceUID, measurements.SeriesInstanceUID
        )
        orthanc.upload(report.encode(measurements))
        options["series_number"] += 1
        orthanc.upload(report.encode(samples.text(analysed, **options)))
    return str(image.StudyInstanceUID)


@pytest.fixture(scope="module")
def ohif(orthanc: OrthancServer) -> Iterator[str]:
    """Root URL of a viewer beside the session's Orthanc."""
    fetched = subprocess.run([SERVE, "--fetch", "--folder", CACHE], capture_output=True, text=True, check=False)
    if fetched.returncode == 75:
        pytest.skip("OHIF is not in .cache/ohif and npm cannot download it here")
    assert fetched.returncode == 0, fetched.stderr
    options = ["--port", str(free_port()), "--folder", str(CACHE)]
    with subprocess.Popen([SERVE, "--orthanc", orthanc.url, *options]) as server:
        url = f"http://127.0.0.1:{options[1]}"
        _wait_for(url, server)
        yield url
        subprocess.run([SERVE, "--stop", *options], check=True)
        assert server.wait(timeout=10) == 0


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert server.poll() is None, "nginx ended"
        try:
            httpx.get(f"{url}/app-config.js").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("nginx does not answer")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def viewer(browser: Browser, ohif: str, study: str) -> Page:
    """The study in the viewer."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    _show(page, ohif, study)
    foreign = [url for url in requested if not url.startswith((ohif, "data:", "blob:"))]
    assert not foreign, "the viewer talks to nobody but its own server"
    return page


def _show(page: Page, ohif: str, study: str) -> None:
    page.set_default_timeout(60_000)
    page.goto(f"{ohif}/viewer?StudyInstanceUIDs={study}")
    page.get_by_text("Confirm and hide").click()
    expect(page.locator(SERIES)).to_have_count(4, timeout=60_000)


@pytest.fixture
def page(viewer: Page, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The study in the viewer; leaves a picture of it after each test in the run's temporary folder."""
    yield viewer
    viewer.screenshot(path=tmp_path_factory.getbasetemp() / f"{request.node.name[:60]}.png")


def _open(page: Page, answer: samples.Answer, *, text: bool = False) -> None:
    """Open a report by the name of its series, and wait until it is shown."""
    name = f"AI pneumonia {answer.answer.upper()} {100 * answer.pneumonia:.0f} % (unverified)"
    name += ", text" if text else ""
    page.locator(SERIES).filter(has=page.get_by_text(name, exact=True)).dblclick()
    expected = f"({100 * answer.pneumonia:.1f} %)" if text else f"Certainty of Finding: {100 * answer.pneumonia:.2f} %"
    expect(page.locator(GRID)).to_contain_text(expected, timeout=30_000)


def _assert_outline(page: Page, region: report.Region) -> None:
    """One outline is shown, and it lies where the report says, to within the screen's resolution."""
    (outline,) = page.evaluate(OUTLINES)
    assert len(outline) == len(region.polyline)
    for shown, meant in zip(outline, region.polyline, strict=True):
        assert shown == pytest.approx(meant, abs=2)


def test_a_positive_report_shows_its_box_and_its_certainty(page: Page) -> None:
    _open(page, PRESENT)
    _assert_outline(page, report.region_from_evidence(samples.evidence(), samples.ROWS, samples.COLUMNS))


def test_the_certainty_is_readable_in_a_landscape_image(page: Page) -> None:
    for answer in (PRESENT, ABSENT):
        _open(page, answer)
        viewport = page.locator(f"{GRID} svg.svg-layer").bounding_box()
        label = page.locator(f"{GRID} svg.svg-layer text").bounding_box()
        assert viewport is not None
        assert label is not None
        assert label["x"] >= viewport["x"]
        assert label["x"] + label["width"] <= viewport["x"] + viewport["width"]


def test_a_negative_report_opened_right_after_a_positive_one_shows_no_stale_box(page: Page) -> None:
    _open(page, PRESENT)
    _open(page, ABSENT)
    assert "97.30 %" not in page.locator(GRID).inner_text()
    _assert_outline(page, report.frame(samples.ROWS, samples.COLUMNS))


def test_going_back_and_forth_between_reports_always_shows_the_chosen_one(page: Page) -> None:
    for answer in (ABSENT, PRESENT, ABSENT, PRESENT):
        _open(page, answer)
        assert page.locator(GRID).inner_text().count("Certainty of Finding") == 1


def test_the_text_report_reads_as_sentences_that_are_not_cut_off(page: Page) -> None:
    _open(page, ABSENT, text=True)
    shown = page.locator(GRID).inner_text().replace("\xa0", " ")
    for sentence in (
        "The algorithm finds no signs of pneumonia; its estimated probability is 4.2 %.",
        "Conclusion: Pneumonia ABSENT according to the algorithm (4.2 %).",
        f"Conclusion: {wording.UNVERIFIED}",
    ):
        assert sentence in shown
    cut = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.textContent)"
    for answer in (ABSENT, PRESENT):
        _open(page, answer, text=True)
        assert page.locator(f"{GRID} pre, {GRID} div").evaluate_all(cut) == []


def test_the_study_list_tells_studies_apart_by_their_description(page: Page, ohif: str, study: str) -> None:
    answer = httpx.get(
        f"{ohif}/dicom-web/studies", params={"StudyInstanceUID": study, "includefield": "00081030,00080060"}
    )
    assert b"%2C" in answer.request.url.query, "the comma is encoded, as OHIF does it"
    (found,) = answer.raise_for_status().json()
    assert found["00081030"]["Value"] == ["Chest PA"]
    page.goto(ohif)
    expect(page.locator("body")).to_contain_text("Chest PA")


def test_an_ohif_without_our_fixes_shows_both_reports_as_they_are(browser: Browser, ohif: str, study: str) -> None:
    with tarfile.open(next(CACHE.glob("*.tgz"))) as published:

        def original(route: Route) -> None:
            file = published.extractfile(f"package/dist/{route.request.url.rpartition('/')[2]}")
            assert file is not None
            route.fulfill(body=file.read(), content_type="text/javascript")

        page = browser.new_page(viewport={"width": 1400, "height": 900})
        fixed = [
            bundle for bundle in (CACHE / "package/dist").glob("*.bundle.*.js") if b"fixed here" in bundle.read_bytes()
        ]
        assert len(fixed) == 2
        for bundle in fixed:
            page.route(f"**/{bundle.name}", original)
        _show(page, ohif, study)
        for answer, region in (
            (PRESENT, report.region_from_evidence(samples.evidence(), samples.ROWS, samples.COLUMNS)),
            (ABSENT, report.frame(samples.ROWS, samples.COLUMNS)),
        ):
            _open(page, answer)
            _assert_outline(page, region)
        page.close()


def test_a_changed_archive_and_a_missing_option_stop_the_command(tmp_path: Path) -> None:
    (tmp_path / "ohif-app-3.13.2.tgz").write_bytes(b"something else")

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SERVE, *options, "--folder", tmp_path], capture_output=True, text=True, check=False)

    changed = run("--orthanc", "http://127.0.0.1:8042")
    assert changed.returncode == 70
    assert "is not the published @ohif/app@3.13.2" in changed.stderr
    assert not (tmp_path / "package").exists()
    assert run("--unknown").returncode == 64
    assert run("--stop").returncode == 69


def test_the_viewer_cannot_write_into_the_archive(ohif: str) -> None:
    assert httpx.post(f"{ohif}/dicom-web/studies", content=b"").status_code == 403
