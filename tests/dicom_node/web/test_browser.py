"""The pages in a real browser: no violation of the content policy, and a click that puts a failed job back."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, sync_playwright

from dicom_node.core.database import job, study
from dicom_node.web.app import server
from tests.dicom_node.web import records
from tests.dicom_node.web.conftest import Site

CHROMIUM = shutil.which("chromium")
PAGES = ("/", "/studies/5", "/reading", "/studies/5/reading", "/refusals", "/jobs", "/audit", "/status")


@pytest.fixture
def address(busy: Site) -> Iterator[str]:
    """The pages over HTTP, on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = server(busy.app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian package chromium)")
def test_the_pages_work_in_a_browser(busy: Site, address: str) -> None:
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.clock.install()
        for path in PAGES:
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        keyboard_reaches_the_content(page, address)
        try_again_puts_the_job_back(busy, page, address)
        a_reading_is_recorded(page, address)
        a_new_study_appears_by_itself(busy, page, address)
        browser.close()
    assert complaints == []


def keyboard_reaches_the_content(page: Page, address: str) -> None:
    page.goto(address + "/")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def try_again_puts_the_job_back(busy: Site, page: Page, address: str) -> None:
    failed = records.failed_jobs(busy.database)
    page.goto(address + "/jobs?view=failed")
    page.get_by_role("button", name=f"Try again: job {failed[0]}", exact=True).click()
    page.get_by_role("status").get_by_text(f"Job {failed[0]} was put back").wait_for()
    assert records.failed_jobs(busy.database) == failed[1:]
    with busy.database.read() as connection:
        assert connection.execute(sa.select(job.c.state).where(job.c.id == failed[0])).scalar_one() == "waiting"


def a_reading_is_recorded(page: Page, address: str) -> None:
    page.goto(address + "/reading")
    page.get_by_role("link", name="Read study 5", exact=True).click()
    page.get_by_label("Bacterial pneumonia", exact=True).check()
    page.get_by_role("button", name="Record the reading").click()  # the browser asks for the name first
    assert page.get_by_role("status").count() == 0
    page.get_by_label("Read by").fill("Dr. Ä. Example")
    page.get_by_role("button", name="Record the reading").click()
    page.get_by_role("status").get_by_text("The reading was recorded.").wait_for()
    page.get_by_text("by Dr. Ä. Example").wait_for()


def a_new_study_appears_by_itself(busy: Site, page: Page, address: str) -> None:
    page.goto(address + "/")
    with busy.database.write() as connection:
        number = records.add_study(connection, busy.now)
        assert connection.execute(sa.select(sa.func.max(study.c.id))).scalar_one() == number
    page.clock.run_for(10_000)
    page.get_by_role("link", name=f"Study {number}", exact=True).wait_for()
    page.get_by_role("button", name="Pause updates").click()
    with busy.database.write() as connection:
        records.add_study(connection, busy.now)
    page.clock.run_for(30_000)
    assert page.get_by_role("link", name=f"Study {number + 1}", exact=True).count() == 0
