"""The page, as a browser shows it."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.browser import browsing, complaints, needs_browser
from train_dynamics.report.page import page
from train_dynamics.report.sections import cones_section
from train_dynamics.study.claims import Claim
from train_dynamics.study.cones import ConeOptions, find_cones
from train_dynamics.study.results import compute


@pytest.fixture
def output(analysed):
    return analysed / "analysis"


def test_it_is_one_small_file_that_needs_nothing_else(output):
    text = (output / "report.html").read_text()
    assert (output / "report.html").stat().st_size < 15e6
    assert set(re.findall(r'(?:src|href)="(\w+:)', text)) == {"data:"}
    assert not re.search(r"<script|<link rel=.stylesheet|@import|url\(", text)
    assert text.count("<video") == text.count("aria-label=") == 1
    # 64 examples at either end of every score are too many for a page that can be mailed.
    shown = [path for path in (output / "figures").glob("*.png") if not path.name.startswith("extremes_")]
    assert text.count("<img") == text.count('alt="') == len(shown)


def test_it_says_what_was_found(output, small):
    text = (output / "report.html").read_text()
    claims = json.loads((output / "claims.json").read_text())
    assert len(claims) == 20
    for claim in claims:
        assert claim["sentence"] in text
        assert claim["holds"] is not None or claim["reason"] in text
    start = claims[0]
    assert f">{start['value']:.1%}<" in text and f">{start['low']:.1%} to {start['high']:.1%}<" in text
    # Three seeds drawn three times: all alike, two and one, or one each: 3 + 6 + 1.
    assert "Of 3 seeds there are only 10 different resamples" in text
    # Sixteen updates decide nothing about iteration 50 or 100.
    assert {claim["name"] for claim in claims if claim["holds"] is None} >= {"learns_fast", "typical_learned_early"}
    assert "--num_examples=50 --hidden_sizes=5 --batch_size=16 --epochs=4 --seeds=3 --recording=DIR" in text
    assert "jaxlib" in text and small.versions["jaxlib"] in text


def test_it_begins_with_what_was_found_and_leads_to_all_else(output, small):
    text = (output / "report.html").read_text()
    accuracy = np.mean([small.correct(16)[s].mean() for s in range(3)])
    assert f"The 3 networks classify {accuracy:.1%} of 50 examples correctly after 16 updates" in text
    assert "No two groups of examples pulled against each other" in text
    targets = re.findall(r'<a href="#([\w-]+)">', text)
    assert len(targets) > 5 and all(text.count(f' id="{name}"') == 1 for name in targets)
    places = [
        text.index(words) for words in ("What was found", "Contents", "How the examples were learned", "What holds")
    ]
    assert places == sorted(places)


def test_times_are_iterations_where_some_are_not_recorded(small):
    whole = compute(small, None, False)
    some = whole.iterations * 10
    curves = whole.curves | {"accuracy": np.where(some[:, None] < 30, 0.1, 0.9) * np.ones((3, 1, 11))}
    text = page(small, dataclasses.replace(whole, iterations=some, curves=curves), [], [])
    assert "30 updates" in text and "half of them were right from update 30 on" in text
    assert text.count("<td>30</td>") == 10  # of each chunk


def test_what_comes_from_the_data_is_escaped(small):
    recording = small
    recording.config = dataclasses.replace(small.config, split="<script>alert(1)</script>")
    recording.class_names = ("<b>zero</b>", *small.class_names[1:])
    options = ConeOptions(iteration=0)
    found = find_cones(recording, options, np.zeros((3, 17)))
    sections = [cones_section(recording, options, found, [])]
    text = page(recording, compute(recording), [], sections)
    assert "<script>" not in text and "<b>" not in text
    assert "&lt;script&gt;" in text and "&lt;b&gt;zero&lt;/b&gt;:" in text


def test_a_verdict_that_other_seeds_could_change_is_called_so(small, output):
    found = [Claim(**claim) for claim in json.loads((output / "claims.json").read_text())]
    for support, words in ((0.97, "barely: so in 97 % of resamples"), (0.98, "")):
        claims = [
            dataclasses.replace(found[0], support=support),
            *(dataclasses.replace(c, support=1.0) for c in found[1:]),
        ]
        text = page(small, compute(small), claims, [])
        assert text.count("barely: so in") == text.count(words or "barely: so in") == bool(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # selenium's sockets
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")], ids=["laptop", "phone"])
def test_a_browser_shows_all_of_it(output, width, scheme):
    from selenium.webdriver.support.ui import WebDriverWait

    with browsing(width, 900, scheme) as browser:
        browser.get((output / "report.html").as_uri())
        loaded = browser.execute_script(
            "return [...document.images].map(i => "
            "i.complete && i.naturalWidth > 600 && i.getBoundingClientRect().width > 200)"
        )
        assert len(loaded) == (output / "report.html").read_text().count("<img") > 20 and all(loaded)
        film = "const film = document.querySelector('video'); return [film.readyState, film.videoWidth, film.error]"
        # The page counts as loaded as soon as the film has a first picture.
        WebDriverWait(browser, 120).until(lambda _: browser.execute_script(film)[0] == 4)
        assert browser.execute_script(film) == [4, 900, None]  # 4: enough of it to play to the end
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        cut_off = browser.execute_script(
            "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && "
            "(e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 "
            "&& getComputedStyle(e).display != 'inline')).map(e => e.outerHTML.slice(0, 80))"
        )
        assert cut_off == []
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(23, 24, 26)")
        assert complaints(browser) == []
