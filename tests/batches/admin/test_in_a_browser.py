"""The admin as a person sees it: a real Chromium against a whole server."""

import re
import shutil
from pathlib import Path

import pytest
from django.contrib.admin.utils import quote
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

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
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_person_logs_in_looks_around_pauses_and_cancels_a_batch(stack, fake, browser, tmp_path):
    fake.sizes = (10 * 2**30, 7 * 2**30)
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    failed = finish(client, submit(client, [line("x", method="GET")]).id)
    fake.always("b", Action(hang=True))
    running = submit(client, [line(each) for each in "abc"], metadata={"project": "apples"})
    eventually(lambda: "b" in fake.arrived(), what="the second request")

    password = re.search(r"Made user admin, password (\S+)", server.log.read_text())[1]
    browser.get(f"{server.base}/")
    picture(browser, tmp_path, "login")
    browser.find_element(By.NAME, "username").send_keys("admin")
    browser.find_element(By.NAME, "password").send_keys(password)
    browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
    shows(browser, "What is going on")
    picture(browser, tmp_path, "home")

    # Search for the running batch and open it.
    browser.get(f"{server.base}/admin/batches/batch/?q=apples")
    assert running.id in text(browser)
    assert failed.id not in text(browser)
    browser.get(f"{server.base}/admin/batches/batch/")
    picture(browser, tmp_path, "batches")
    browser.find_element(By.LINK_TEXT, running.id).click()
    shows(browser, "2 / 3")  # what hangs holds up nobody
    assert "In Progress" in text(browser)
    assert "Only 70 % of gemma3:12b is on the GPU" in text(browser)
    picture(browser, tmp_path, "batch")

    browser.find_element(By.LINK_TEXT, "Show").click()
    shows(browser, "Succeeded")
    picture(browser, tmp_path, "lines")

    browser.get(f"{server.base}/admin/batches/batch/{quote(failed.id)}/change/")
    assert "line 1: The method of a request must be POST. (invalid_method)" in text(browser)
    picture(browser, tmp_path, "failed")

    browser.get(f"{server.base}/admin/files_api/file/?q=in.jsonl")
    assert running.input_file_id in text(browser)
    picture(browser, tmp_path, "files")

    # Pause everything by the button, and resume it.
    browser.get(f"{server.base}/admin/batches/batch/")
    press(browser, "pause")
    shows(browser, "Paused all batches.")
    assert "A person paused all batches at" in text(browser)
    picture(browser, tmp_path, "all_paused")
    browser.get(f"{server.base}/admin/batches/batch/{quote(running.id)}/change/")
    shows(browser, "A person paused all batches at")
    picture(browser, tmp_path, "waits")
    browser.get(f"{server.base}/admin/batches/batch/")
    press(browser, "resume")
    shows(browser, "Resumed all batches.")
    assert server.health()["reason"] is None

    # Pause both by the action: one is held back, the other is past it.
    act(browser, "pause")
    shows(browser, f"Paused {running.id}.")
    assert f"Cannot pause a batch with status 'failed'. ({failed.id})" in text(browser)
    picture(browser, tmp_path, "paused")
    browser.find_element(By.LINK_TEXT, running.id).click()
    shows(browser, "A person paused this batch at")
    browser.get(f"{server.base}/admin/batches/batch/")
    act(browser, "resume")
    shows(browser, f"Resumed {running.id}.")

    # Cancel both by the action: one goes, the other is past it.
    browser.get(f"{server.base}/admin/batches/batch/")
    act(browser, "cancel")
    shows(browser, f"Cancelling {running.id}.")
    page = text(browser)
    assert f"Cannot cancel a batch with status 'failed'. ({failed.id})" in page
    picture(browser, tmp_path, "cancelled")

    done = finish(client, running.id)
    assert (done.status, done.request_counts.completed) == ("cancelled", 2)
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if "/favicon.ico" not in message] == []


def press(browser, button):
    browser.find_element(By.CSS_SELECTOR, f".object-tools [name={button}]").click()


def act(browser, action):
    """Do it to all batches of the list."""
    browser.find_element(By.ID, "action-toggle").click()
    Select(browser.find_element(By.NAME, "action")).select_by_value(action)
    browser.find_element(By.NAME, "index").click()


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
