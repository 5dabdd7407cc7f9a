"""What a person sees in a browser: MLflow from the printed link on, and the report.

Needs chromium and chromedriver, which .ci/run installs where it can.
"""

import shutil
import time
from collections.abc import Iterator

import pytest
from conftest import HANG_S, inside, leaderboard

selenium = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver",
)

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1600,2600",  # MLflow's table draws the rows that are seen
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    opened = selenium.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield opened
    opened.quit()


def until(browser, xpath: str):
    """The first element, as soon as there is one."""
    deadline = time.monotonic() + HANG_S
    while not (found := browser.find_elements("xpath", xpath)):
        assert time.monotonic() < deadline, f"{xpath} is not in {browser.current_url}"
        time.sleep(0.2)
    return found[0]


def row(browser, name: str) -> str:
    """The id of a row of MLflow's table."""
    link = f"//div[@role='row'][.//a[normalize-space()='{name}']]"
    return until(browser, link).get_attribute("row-id")


def test_from_the_printed_link_to_a_comparison_of_the_champion_and_a_trial(run, browser):
    said = inside("ui", run.spec, *run.where).stdout
    browser.get(said.strip())
    entries = [e["name"] for e in leaderboard(run.output)]
    until(browser, f"//a[normalize-space()='{entries[0]}']")
    seen = [a.text for a in browser.find_elements("xpath", "//div[@role='row']//a") if a.text]
    assert seen[: len(entries)] == entries  # by rank
    until(browser, "//*[@aria-colindex and contains(., 'gain/test')]")
    trial = next(name for name in seen if name.startswith("trial 00"))
    for name in (entries[0], trial):
        box = f"//div[@row-id='{row(browser, name)}']//input[@type='checkbox']"
        browser.execute_script("arguments[0].click()", until(browser, box))
    until(browser, "//button[.//text()='Compare' or text()='Compare']").click()
    until(browser, "//h1[contains(., 'Comparing 2 Runs')] | //*[contains(., 'Comparing 2 Runs')]")
    page = until(browser, "//body").text
    assert entries[0] in page
    assert trial in page
    assert "lr" in page


def test_the_report_draws_all_its_charts_without_an_error(run, browser):
    browser.get_log("browser")  # what earlier pages said
    browser.get((run.output / "report.html").as_uri())
    charts = browser.find_elements("xpath", "//div[starts-with(@id, 'chart-')]")
    assert len(charts) == 11
    for chart in charts:
        name = chart.get_attribute("id")
        drawn = until(
            browser, f"//div[@id='{name}']//*[name()='svg' and contains(@class, 'marks')]"
        )
        assert drawn.size["width"] > 100
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
