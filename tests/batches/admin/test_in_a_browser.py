"""The admin as a person sees it: a real Chromium against a whole server."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from django.contrib.admin.utils import quote
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By

from tests.conftest import line, needs
from tests.fake_backend import Action
from tests.stack import eventually
from tests.whole_server import client_of, finish, submit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.browser


@pytest.fixture
def browser(tmp_path, processes):
    needs(CHROMIUM and DRIVER, "Chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_person_looks_after_batches(stack, fake, browser, tmp_path):
    fake.always("b", Action(hang=True))
    server = stack(OLLAMA_BASE_URL=fake.url, is_first_start=True)
    client = client_of(server)
    password = re.search(r"Made user admin, password (\S+)", server.log.read_text())[1]
    browser.get(f"{server.base}/")
    browser.find_element(By.NAME, "username").send_keys("admin")
    browser.find_element(By.NAME, "password").send_keys(password)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    shows(browser, "Nothing to do.")

    # The first page moves: a batch appears on it and goes on.
    with stays(browser):
        running = submit(client, [line(each) for each in "abc"], metadata={"project": "apples"})
        shows(browser, "2 of 3 lines")  # what hangs holds up nobody
    picture(browser, tmp_path, "now")
    click(browser, "Pause all batches")
    shows(browser, "Paused all batches.")
    shows(browser, "A person paused all batches at")
    click(browser, "Resume all batches")
    shows(browser, "Resumed all batches.")
    assert server.health()["reason"] is None

    # Its page moves too.
    browser.get(f"{server.base}/admin/batches/batch/?q=apples")
    assert running.id in text(browser)
    picture(browser, tmp_path, "batches")
    click(browser, "in.jsonl")
    shows(browser, "66 %")
    shows(browser, "Line 1: a")
    click(browser, "Extend to 7 days from now")
    shows(browser, f"Extended {running.id}.")
    with stays(browser):
        requests.post(f"{server.base}/v1/batches/{running.id}/pause", timeout=10).raise_for_status()
        shows(browser, "A person paused this batch at")
    click(browser, "Resume")
    shows(browser, f"Resumed {running.id}.")
    click(browser, "Answers so far")
    eventually(lambda: len(downloaded(tmp_path)) == 2, what="the download")

    # A line, and the one behind it.
    click(browser, "Look at the lines")
    shows(browser, "Succeeded".upper())
    browser.find_element(By.LINK_TEXT, "1").click()
    shows(browser, "As it is")
    click(browser, "Next")
    shows(browser, "Line 2: b")
    shows(browser, "There is no answer yet.")
    picture(browser, tmp_path, "line")

    # Cancel asks; then the lines that were left are asked again.
    browser.get(f"{server.base}/admin/batches/batch/{quote(running.id)}/change/")
    click(browser, "Cancel")
    shows(browser, "2 of 3 lines are finished, and stay.")
    click(browser, "No, go back")
    shows(browser, "66 %")
    click(browser, "Cancel")
    click(browser, "Yes, cancel")
    shows(browser, f"Cancelling {running.id}.")
    with stays(browser):
        shows(browser, "Retry the lines without an answer")
    done = finish(client, running.id)
    assert (done.status, done.request_counts.completed) == ("cancelled", 2)
    click(browser, "Retry the lines without an answer")
    shows(browser, f"asks the lines of {running.id} again.")
    picture(browser, tmp_path, "retried")
    assert next(iter(client.batches.list())).id != running.id

    told = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert [message for message in told if "/favicon.ico" not in message] == []

    # What got into a page all the same does nothing.
    browser.execute_script(INJECT)
    [refused] = [each["message"] for each in browser.get_log("browser") if "script-src" in each["message"]]
    assert "Content Security Policy" in refused
    assert browser.execute_script("return window.injected") is None


INJECT = """
const script = document.createElement("script");
script.textContent = "window.injected = true";
document.body.append(script);
"""


@contextmanager
def stays(browser):
    """The page is not loaded anew meanwhile."""
    browser.execute_script("window.isTheSame = true")
    yield
    assert browser.execute_script("return window.isTheSame === true")


def downloaded(tmp_path):
    """The lines of what was downloaded whole."""
    found = list((tmp_path / "downloads").glob("*.jsonl"))
    return found[0].read_text().splitlines() if found else []


def click(browser, words):
    """What has these words alone, as soon as it is there; a part of the page may just be loaded anew."""

    def attempt():
        try:
            browser.find_element(
                By.XPATH, f"//*[self::a or self::button][contains(normalize-space(.), {words!r})]"
            ).click()
        except (NoSuchElementException, StaleElementReferenceException, ElementNotInteractableException):
            return False
        return True

    eventually(attempt, within_s=30, what=f"something to click with {words!r}")


def text(browser):
    return browser.find_element(By.TAG_NAME, "body").text


def shows(browser, words):
    """Wait for a page with these words: a click returns before the next page is there."""

    def look():
        try:
            return words in text(browser)
        except (NoSuchElementException, StaleElementReferenceException):
            return False

    eventually(look, within_s=30, what=f"a page with {words!r}")


def picture(browser, tmp_path: Path, name: str) -> None:
    """A screenshot among the test's own files, for whoever wants to look."""
    assert browser.save_screenshot(str(tmp_path / f"{name}.png"))
