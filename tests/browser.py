"""A real browser for the tests that look at pages; without one they are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
SWITCHES += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SWITCHES += ["--enable-unsafe-swiftshader"]  # WebGL without a graphics card

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium and chromedriver to look at pages with"
)


@contextmanager
def browsing(width: int = 1280, height: int = 900, scheme: str = "light") -> "Iterator[Chrome]":
    """Open a browser with a window of some size, for a user who likes light or dark pages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        resize(browser, width, height)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        yield browser
    finally:
        browser.quit()


def resize(browser: "Chrome", width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def complaints(browser: "Chrome") -> list[str]:
    """What the browser has complained of, but for its renderer's remarks on how long screenshots take it."""
    return [entry["message"] for entry in browser.get_log("browser") if "GL Driver Message" not in entry["message"]]
