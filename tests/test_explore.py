"""The explorer: what the server answers and to whom, and the page as a person uses it in a real browser."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest

from tests.browser import browsing, complaints, needs_browser, resize
from tests.conftest import SMALL, run, silent
from train_dynamics.config import InputError
from train_dynamics.dynamics import cones
from train_dynamics.explorer import export
from train_dynamics.explorer.explored import opened_for_showing
from train_dynamics.explorer.notebook import Explorer
from train_dynamics.explorer.page import ASSETS, page
from train_dynamics.explorer.server import Server, is_ours
from train_dynamics.explorer.shown import HISTORY, encoded
from train_dynamics.recording.locks import lock
from train_dynamics.recording.reader import Recording
from train_dynamics.study import histories as making
from train_dynamics.study.cones import ConeOptions, cover, read_factors
from train_dynamics.training import sweep

ROOT = Path(__file__).parents[1]
HALF, SUBNORMAL = 2**-11, 2**-25  # rounding of 16-bit floats: relative, and absolute below 6e-5


@pytest.fixture(scope="module")
def place(analysed, tmp_path_factory):
    """A copy of the small study, analysed, to which histories are added."""
    path = tmp_path_factory.mktemp("explore") / "study"
    shutil.copytree(analysed, path)
    return path


@pytest.fixture(scope="module")
def served(place):
    server = Server(opened_for_showing(Recording(place)))
    yield server
    server.close()


def ask(url, path="", body=None, headers=None, token=True, **query):
    """Ask a server: status and answer."""
    address, _, secret = url.partition("?token=")
    given = {"Authorization": f"Bearer {secret}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}?{urlencode(query)}", data, {**given, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def numbers(url, path, kind="<f4", body=None, **query):
    status, content = ask(url, f"api/{path}", body, **query)
    assert status == 200, content
    return np.frombuffer(content, kind)


# What is answered.


def test_encodings_keep_what_they_promise(rng):
    values = rng.normal(size=1000).astype(np.float32) * 10.0 ** rng.integers(-3, 4, 1000)
    np.testing.assert_allclose(encoded(values, "float16").astype(np.float64), values, rtol=HALF, atol=SUBNORMAL)
    assert encoded(np.array([1e9, -1e9, np.nan]), "float16")[:2].tolist() == [65504.0, -65504.0]
    cosines = rng.uniform(-1, 1, 1000)
    np.testing.assert_allclose(encoded(cosines, "snorm16") / 32767, cosines, atol=0.5 / 32767 + 1e-12)
    assert encoded(np.array([3, 255]), "uint8").tolist() == [3, 255]


def test_frames_are_what_was_recorded(served, place):
    recording = Recording(place)
    about = json.loads(ask(served.url, "api/about")[1])
    (one,) = about["recordings"]
    assert one["iterations"] == recording.iterations.tolist() and one["seeds"] == [0, 1, 2]
    assert about["labels"] == recording.labels.tolist() and about["ids"] == recording.ids.tolist()
    assert {"agr", "cumulative_loss", "el2n"} <= {score["name"] for score in about["scores"]}
    for s in range(3):
        loss = np.stack([recording.loss(t)[s] for t in range(0, 17, 3)])
        sent = numbers(
            served.url, "frames", "<f2", recording=0, seed=s, measure="loss", step=3, **{"from": 0, "to": 17}
        )
        np.testing.assert_allclose(sent.reshape(6, 50), loss, rtol=HALF, atol=SUBNORMAL)
        sent = numbers(
            served.url, "frames", "u1", recording=0, seed=s, measure="prediction", step=1, **{"from": 5, "to": 7}
        )
        np.testing.assert_array_equal(sent.reshape(2, 50), [recording.predictions(t)[s] for t in (5, 6)])
    accuracy, loss = numbers(served.url, "curves", recording=0, seed=1).reshape(2, 17)
    np.testing.assert_allclose(accuracy, [recording.correct(t)[1].mean() for t in range(17)], rtol=1e-6)
    np.testing.assert_allclose(loss, [recording.loss(t)[1].mean() for t in range(17)], rtol=1e-6)


def test_histories_and_bands_are_those_of_the_recording(served, place):
    recording = Recording(place)
    known = recording.history(7)
    expected = [known.norm["fc2"], known.alignment["fc2"], known.loss, known.margin, known.correct]
    sent = numbers(served.url, "history", recording=0, seed=2, layer="fc2", example=7).reshape(len(HISTORY), 17)
    np.testing.assert_array_equal(sent, [values[2].astype(np.float32) for values in expected])
    members = [3, 9, 21, 40]
    sent = numbers(served.url, "band", body=members, recording=0, seed=0, layer="fc2").reshape(len(HISTORY), 3, 17)
    loss = np.stack([recording.history(n).loss[0] for n in members])
    np.testing.assert_allclose(sent[HISTORY.index("loss"), 0], np.quantile(loss, 0.25, axis=0), rtol=1e-6)
    np.testing.assert_allclose(sent[HISTORY.index("loss"), 1], loss.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(sent[HISTORY.index("loss"), 2], np.quantile(loss, 0.75, axis=0), rtol=1e-6)


def test_groups_are_those_of_the_study(served, place, monkeypatch):
    recording = Recording(place)
    monkeypatch.setattr("train_dynamics.explorer.shown.ContentionOptions", few)
    found = json.loads(ask(served.url, "api/groups", recording=0, seed=1, layer="fc2", iteration=6)[1])
    cone, _ = cover(cones.directions(*read_factors(recording, "fc2", 6)[1]), ConeOptions())
    sizes = np.bincount(cone[cone >= 0])
    assert found["iteration"] == 6 and sizes.max() >= 2
    expected = [np.flatnonzero(cone == k).tolist() for k in range(len(sizes)) if sizes[k] >= 2]
    assert sorted(one["members"] for one in found["cones"]) == sorted(expected)
    assert all(one["cosine"] > 0.949 and (one["lineage"] is None or one["lineage"] >= 0) for one in found["cones"])
    assert found["pairs"]
    for pair in found["pairs"]:
        (left, right) = (
            recording.gradients("fc2", 6)[1][pair[side]].reshape(len(pair[side]), -1) for side in ("left", "right")
        )
        one, other = left.mean(axis=0), right.mean(axis=0)
        np.testing.assert_allclose(pair["cosine"], one @ other / np.linalg.norm(one) / np.linalg.norm(other), rtol=1e-4)


def few():
    """Pairs of groups so small that fifty examples have some."""
    from train_dynamics.study.contention import ContentionOptions

    return ContentionOptions(smallest=2, cosine=0.2)


def test_pictures_are_the_images(served, place):
    sent = numbers(served.url, "pictures", "u1", body=[4, 2])
    np.testing.assert_array_equal(sent.reshape(2, 28, 28, 1), Recording(place).images[[4, 2]])


# Who may ask, and for what.


@pytest.mark.parametrize("path", ["", "api/about"])
def test_who_does_not_know_the_token_gets_nothing(served, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}):
        status, content = ask(
            served.url, path, token=False, headers={k: v.encode().decode("latin-1") for k, v in headers.items()}
        )
        assert status == 403 and b"<" not in content
    assert ask(served.url, path)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "localhost:9999"}, 200),  # as by ssh -L
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9999", "Origin": "http://localhost:9999"}, 200),
        ({"Host": "localhost:9999", "Origin": "http://localhost:1"}, 403),
    ],
)
def test_pages_of_others_are_refused(served, headers, status):
    assert ask(served.url, "api/about", headers=headers)[0] == status


def test_hosts():
    assert is_ours("127.0.0.1:1") and is_ours("192.0.2.1") and is_ours("LOCALHOST") and is_ours(socket.gethostname())
    assert not any(
        map(is_ours, ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a b"])
    )


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "../config.json",
        "%2e%2e/config.json",
        "api/../../../etc/passwd",
        "api/%2Fetc%2Fpasswd",
        "assets/explorer.js",
    ],
)
def test_nothing_else_is_served(served, path):
    status, content = ask(served.url, path)
    assert status == 404 and b"root:" not in content and b"checksum" not in content


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("frames", {"recording": 1}, None),
        ("frames", {"recording": 0, "seed": 3, "measure": "loss", "from": 0, "to": 1, "step": 1}, None),
        ("frames", {"recording": 0, "seed": 0, "measure": "../config", "from": 0, "to": 1, "step": 1}, None),
        ("frames", {"recording": 0, "seed": 0, "measure": "loss", "from": 0, "to": 18, "step": 1}, None),
        ("frames", {"recording": 0, "seed": 0, "measure": "loss", "from": -1, "to": 2, "step": 1}, None),
        ("frames", {"recording": 0, "seed": 0, "measure": "loss", "from": 0, "to": 2, "step": 0}, None),
        ("history", {"recording": 0, "seed": 0, "layer": "fc2", "example": 50}, None),
        ("history", {"recording": "é", "seed": 0, "layer": "fc2", "example": 5}, None),
        ("groups", {"recording": 0, "seed": 0, "layer": "fc9", "iteration": 3}, None),
        ("groups", {"recording": 0, "seed": 0, "layer": "fc2", "iteration": 10**30}, None),
        ("score", {"name": "nothing"}, None),
        ("pictures", {}, [50]),
        ("pictures", {}, []),
        ("pictures", {}, {"a": 1}),
        ("pictures", {}, [True]),
        ("pictures", {}, None),
        ("band", {"recording": 0, "seed": 0, "layer": "fc2"}, ["1"]),
    ],
)
def test_nonsense_is_answered_by_a_line(served, path, query, body):
    status, content = ask(served.url, f"api/{path}", body, **query)
    assert status == 404 and len(content.splitlines()) == 1


def test_what_is_no_question_leaves_no_traceback(served, capfd):
    address, _, secret = served.url.partition("?token=")
    headers = {"Authorization": f"Bearer {secret}"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(f"{address}api/pictures", b"[" * 100_000, headers))
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert ask(served.url, "api/about", headers=upgrade | {"Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="})[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_page_may_do_little(served):
    address, _, secret = served.url.partition("?token=")
    with urllib.request.urlopen(f"{address}?token={secret}") as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    for tag, name in (("style", "explorer.css"), ("script", "explorer.js")):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        assert inside == (ASSETS / name).read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)


def test_markup_in_an_export_ends_no_element():
    assert "</script><b>" not in page('{"a": "</script><b>"}')


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--export=page.txt"], "explore: --export=page.txt: must end in .html"),
        (
            ["--export=nowhere/page.html"],
            "explore: --export=nowhere/page.html: must be a file in an existing directory",
        ),
        (["--export=there.html"], "explore: --export=there.html: exists; choose another name, or add --overwrite"),
        (["--export=page.html", "--seed=7"], "explore: --seed=7: was not recorded; recorded: 0, 1, 2"),
        (["--port=70000", "--no_browser"], "explore: --port=70000: must be 0 to 65535; 0 takes a free one"),
        (["--host=192.0.2.1", "--no_browser"], "explore: --host=192.0.2.1: is not an address of this machine"),
        (["--host=no such name", "--no_browser"], "explore: --host=no such name: is not an address of this machine"),
        (
            ["--analysis=nowhere"],
            "explore: --analysis=nowhere: has no scores.parquet, which train_dynamics.analyze writes",
        ),
    ],
)
def test_mistakes_get_a_line(place, tmp_path, arguments, line):
    (tmp_path / "there.html").write_text("mine")
    done = run("explore", f"--recording={place}", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0].startswith(line) and len(done.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.html"]


def test_a_port_in_use(place, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("explore", f"--recording={place}", f"--port={port}", "--no_browser", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"explore: --port={port}: is in use; choose another, or 0 for a free one\n"


def test_the_command_says_where_and_ends_by_ctrl_c(place, tmp_path):
    command = [sys.executable, "-m", "train_dynamics.explore", f"--recording={place}", "--no_browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    said = "".join(iter(process.stdout.readline, "Ctrl-C ends it\n"))
    (address,) = re.findall(r"http://127\.0\.0\.1:\d+/\?token=\S+", said)
    assert ask(address, "api/about")[0] == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "explore: stopped\n"


def test_another_recording_must_have_the_same_examples(place, tmp_path, device):
    other = dataclasses.replace(SMALL, subset_seed=5, epochs=1, num_seeds=1)
    sweep.train(other, tmp_path / "other", device, log=silent)
    with pytest.raises(InputError, match=r"--compare=.*other: has other ids\.?.* than"):
        opened_for_showing(Recording(place), Recording(tmp_path / "other"))


def test_a_recording_that_cannot_be_written_to(place, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("histories"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (copy / "histories").write_text("in the way")  # root may write anywhere, but not into a file
    said = []
    explored = opened_for_showing(Recording(copy), log=said.append)
    (line,) = said
    assert "could not be written" in line and str(tmp_path / "cache") in line
    (shown,) = explored.recordings.values()
    np.testing.assert_array_equal(shown.read("loss", 1, 4, 5)[0], Recording(place).loss(4)[1])


def test_a_damaged_recording_is_told_by_the_page(place, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("histories"))
    victim = next((copy / "blocks" / "3").rglob("loss/c/0/0/0"), None) or next(
        file for file in (copy / "blocks" / "3").rglob("0") if "loss" in str(file) and file.is_file()
    )
    content = bytearray(victim.read_bytes())
    content[10] ^= 1
    victim.write_bytes(content)
    server = Server(opened_for_showing(Recording(copy)))
    try:
        status, line = ask(server.url, "api/about")
        assert status == 500 and b"damaged" in line and b"blocks/3" in line
    finally:
        server.close()


def test_a_notebook_shows_the_page(place):
    shown = Explorer(place, height=500)
    try:
        text = shown._repr_html_()
        assert text.startswith("<iframe") and shown.url.replace("&", "&amp;") in text and 'height="500"' in text
        with urllib.request.urlopen(shown.url) as answer:
            assert "frame-ancestors" not in answer.headers["Content-Security-Policy"]
        assert "token" not in repr(shown)
    finally:
        shown.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(shown.url, timeout=5)


# The page's script is built from explorer/.


def test_the_built_page_is_that_of_the_sources():
    """After a change: `npm ci && npm run check && npm run build` in explorer/."""
    source = ROOT / "explorer"
    names = [f"src/{file.name}" for file in sorted((source / "src").iterdir(), key=lambda file: file.name)]
    digest = hashlib.sha256()
    for name in [*names, "build.mjs", "page.html", "package-lock.json", "package.json"]:
        digest.update(f"{name}\0".encode() + (source / name).read_bytes() + b"\0")
    assert (ASSETS / "SOURCES.sha256").read_text().strip() == digest.hexdigest(), (
        "explorer/ has changed: build it again"
    )
    assert "MIT" in (ASSETS / "LICENCES.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="no npm to build the explorer's page with")
def test_it_is_checked_and_builds_to_the_same_bytes(tmp_path):
    shutil.copytree(ROOT / "explorer", tmp_path / "explorer", ignore=shutil.ignore_patterns("node_modules"))

    def npm(*arguments):
        return subprocess.run(["npm", *arguments], cwd=tmp_path / "explorer", capture_output=True, text=True)

    installed = npm("ci", "--no-audit", "--no-fund")
    if installed.returncode:
        pytest.skip(f"the npm registry cannot be reached: {installed.stderr[-300:]}")
    checked = npm("run", "-s", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (tmp_path / "out").mkdir()
    built = npm("run", "-s", "build", "--", "../out")
    assert built.returncode == 0, built.stderr
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (ASSETS / file.name).read_bytes(), file.name


# As a person uses it.


class Person:
    """Somebody at a browser."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def open(self, state=""):
        self.browser.get("about:blank")
        self.browser.get(f"{self.url}{'#' * bool(state)}{state}")
        self.wait("window.explorer && explorer.settled")

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.browser.get_log("browser"))
            time.sleep(0.05)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.browser, duration=0).send_keys(key).perform()
        self.drawn()

    def drawn(self):
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        self.wait("explorer.settled")
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def state(self):
        return self.run("return explorer.app.state")

    def points(self, panel=0):
        """Where the points stand: read back from the graphics memory."""
        found = self.run(f"return explorer.panels[{panel}].stored()")
        return np.array(found["x"]), np.array(found["y"])

    def drag(self, css, places):
        """Hold the button down from place to place, each a share of the element's width and height."""
        from selenium.webdriver.common.action_chains import ActionChains

        target = self.browser.find_element("css selector", css)
        width, height = target.size["width"], target.size["height"]
        points = [(round(x * width), round(y * height)) for x, y in places]
        actions = ActionChains(self.browser, duration=10)
        actions.move_to_element_with_offset(
            target, points[0][0] - width // 2, points[0][1] - height // 2
        ).click_and_hold()
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            actions.move_by_offset(x1 - x0, y1 - y0)
        actions.release().perform()
        self.drawn()

    def click(self, css):
        self.browser.find_element("css selector", css).click()
        self.drawn()


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture
def person(chromium, served):
    resize(chromium, 1280, 900)
    found = Person(chromium, served.url)
    found.open()
    yield found
    assert complaints(chromium) == []


pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")  # selenium's sockets
in_a_browser = [pytest.mark.slow, needs_browser]


def browser_test(test):
    for mark in in_a_browser:
        test = mark(test)
    return test


def stands(person, recording, s, t, panel=0):
    """Hold the points of a panel against the recording."""
    x, y = person.points(panel)
    history = [recording.history(n) for n in range(len(recording.labels))]
    norm = np.array([one.norm["fc2"][s, t] for one in history])
    alignment = np.array([one.alignment["fc2"][s, t] for one in history])
    np.testing.assert_allclose(x, norm, rtol=HALF, atol=SUBNORMAL)
    np.testing.assert_allclose(y, alignment, atol=0.5 / 32767 + 1e-7)


@browser_test
def test_the_slider_moves_the_points_to_where_the_recording_says(person, place):
    recording = Recording(place)
    stands(person, recording, 0, 0)
    places = {0: person.points()[0]}
    for share in (0.4, 0.75, 0.98):
        person.drag("input[type=range]", [(0.05, 0.5), (share, 0.5)])
        t = person.state()["iteration"]
        assert t not in places
        stands(person, recording, 0, t)
        places[t] = person.points()[0]
    assert len({values.tobytes() for values in places.values()}) == 4
    text = person.browser.find_element("css selector", ".iteration").text
    assert f"iteration {t} of 16" in text and f"accuracy {100 * recording.correct(t)[0].mean():.1f} %" in text


@browser_test
def test_between_two_records_points_are_between(person, place):
    person.run("explorer.app.go(4.25, false)")
    person.drawn()
    x, _ = person.points()
    one = Recording(place).history(3).norm["fc2"][0]
    np.testing.assert_allclose(x[3], 0.75 * one[4] + 0.25 * one[5], rtol=2 * HALF)


@browser_test
def test_a_lasso_selects_what_it_surrounds_and_says_what_that_has_in_common(person, place):
    person.drag(".over", [(0.01, 0.005), (0.995, 0.005), (0.995, 0.95), (0.01, 0.95), (0.01, 0.005)])
    assert person.state()["selection"] == list(range(50))
    person.press("\ue00c")  # Escape
    assert person.state()["selection"] == []
    person.drag(".over", [(0.05, 0.02), (0.98, 0.02), (0.98, 0.4), (0.05, 0.4), (0.05, 0.02)])
    chosen = person.state()["selection"]
    places = person.run(
        "const p = explorer.panels[0], {x, y} = p.pixels(), w = p.over.clientWidth, h = p.over.clientHeight;"
        "return {x: [...x].map(v => (v + 46) / w), y: [...y].map(v => (v + 10) / h), near: [8 / w, 8 / h]}"
    )
    x, y, (nx, ny) = np.array(places["x"]), np.array(places["y"]), places["near"]
    within = [set(np.flatnonzero((x > 0.05 + d * nx) & (x < 0.98 - d * nx) & (y < 0.4 - d * ny))) for d in (1, -1)]
    assert within[0] <= set(chosen) <= within[1] and len(within[0]) > 0 and len(within[1]) < 50
    text = person.browser.find_element("css selector", ".summary").text
    assert f"{len(chosen)} examples of 50" in text and "labels" in text
    assert len(person.browser.find_elements("css selector", ".list .item")) == len(chosen)
    line = person.run("return explorer.examples.line")
    ids = eval(line, {"td": __import__("train_dynamics")})
    assert ids.tolist() == Recording(place).ids[chosen].tolist()


@browser_test
def test_a_pinned_example_shows_the_history_that_was_recorded(person, place):
    person.click(".list .item:nth-child(3)")
    (pin,) = person.state()["pins"]
    person.wait("Object.keys(explorer.histories.shown).length")
    shown = person.run(
        "return Object.fromEntries(Object.entries(Object.values(explorer.histories.shown)[0])"
        ".map(([name, values]) => [name, [...values]]))"
    )
    known = Recording(place).history(pin)
    for name, values in (("loss", known.loss), ("margin", known.margin), ("norm", known.norm["fc2"])):
        np.testing.assert_array_equal(np.float32(shown[name]), values[0])
    np.testing.assert_array_equal(shown["right"], known.correct[0])
    assert len(person.browser.find_elements("css selector", ".charts canvas")) == 4
    person.click(".pins button")
    assert person.state()["pins"] == []


@browser_test
def test_a_cone_is_selected_everywhere(person, monkeypatch):
    monkeypatch.setattr("train_dynamics.explorer.shown.ContentionOptions", few)
    monkeypatch.setattr("train_dynamics.explorer.shown.MOST_COMPARED", 40)
    person.open("t=6&seeds=0,1")
    person.press("g")
    person.wait("document.querySelectorAll('.grouprows button').length > 1")
    assert "Among 40 of the 50 examples, drawn at random." in person.run("return document.body.innerText")
    person.click(".grouprows li:first-child button")
    chosen = person.state()["selection"]
    assert len(chosen) >= 2
    for panel in (0, 1):
        flags = person.run(f"return [...explorer.panels[{panel}].flags]")
        assert [n for n, flag in enumerate(flags) if flag & 2] == chosen


@browser_test
def test_two_recordings_side_by_side(chromium, place, tmp_path, device):
    """The second has half as many iterations, in another setting."""
    other = dataclasses.replace(SMALL, momentum=0.9, epochs=2, num_seeds=1)
    sweep.train(other, tmp_path / "fast", device, log=silent)
    server = Server(opened_for_showing(Recording(place), Recording(tmp_path / "fast")))
    try:
        person = Person(chromium, server.url)
        person.open("t=6&recordings=0,1")
        titles = [title.text for title in chromium.find_elements("css selector", ".panel .title")]
        assert titles == ["study, seed 0, fc2", "fast, seed 0, fc2"]
        stands(person, Recording(place), 0, 6)
        second = Recording(tmp_path / "fast")
        stands(person, second, 0, 6, panel=1)
        person.press("\ue010")  # to the end, where the second one's was eight iterations before
        stands(person, second, 0, 8, panel=1)
        assert complaints(chromium) == []
    finally:
        server.close()


@browser_test
def test_the_url_holds_all_that_is_chosen(person):
    person.open("t=9&seeds=1,2&colour=label&x=loss&y=margin&xScale=log&pins=3,8&labels=1,7&speed=120")
    person.run("explorer.app.select([0, 1, 2, 3, 10, 30, 31, 49])")
    person.press("t")
    person.wait("explorer.settled")
    before, url = person.state(), person.run("return location.href")
    assert (before["seeds"], before["iteration"], before["selection"]) == ([1, 2], 9, [0, 1, 2, 3, 10, 30, 31, 49])
    person.browser.get("about:blank")
    person.browser.get(url)
    person.wait("window.explorer && explorer.settled")
    assert person.state() == before
    person.open(
        "t=99999&seeds=77&x=nothing&pins=900,-1&selected=zzz.*zz&range=agr:x:y&theme=blue"
    )  # of another recording
    assert person.state()["iteration"] == 16 and person.state()["pins"] == []
    assert person.state()["filter"]["low"] is None  # infinite
    person.open(f"pins={','.join(map(str, range(20)))},19&seeds=1,1&xRange=1..1.0000000000000002")
    assert person.state()["pins"] == list(range(12, 20)) and person.state()["seeds"] == [1]
    assert person.state()["xRange"] is None
    assert complaints(person.browser) == []


@browser_test
def test_panels_that_go_give_their_graphics_memory_back(person):
    person.open("t=3")
    for _ in range(12):  # a browser keeps sixteen
        person.run("explorer.app.change({seeds: [0, 1, 2]})")
        person.wait("explorer.panels.length == 3")
        person.run("explorer.app.change({seeds: [0]})")
        person.wait("explorer.panels.length == 1")
    assert not person.run("return explorer.panels[0].points.gl.isContextLost()")
    assert complaints(person.browser) == []


@browser_test
def test_the_keyboard_is_enough(person):
    person.press("\ue014", "\ue014")  # right
    assert person.state()["iteration"] == 2
    person.press("\ue010")  # End
    assert person.state()["iteration"] == 16
    person.press("\ue011", "n", "n", "p")  # Home
    (pin,) = person.state()["pins"]
    assert person.run("return explorer.app.pointed") == pin
    person.press("a")
    assert len(person.state()["selection"]) == 50
    person.press("\ue00c", "c", "]", "x", "X")
    state = person.state()
    assert (state["selection"], state["colour"], state["seeds"], state["x"], state["xScale"]) == (
        [],
        "label",
        [1],
        "alignment",
        "log",
    )
    person.press("?")
    assert person.run("return explorer.help.open")
    person.press("\ue00c")
    assert not person.run("return explorer.help.open")
    person.run("document.querySelector('.track input').focus()")
    person.press("\ue004")  # Tab
    assert person.run("return document.activeElement.type") != "range"
    person.run("document.activeElement.blur()")
    person.press("\ue011", "-", "-", " ")
    assert person.run("return explorer.time.playing") and person.state()["speed"] == 3
    person.wait("explorer.app.record > 1")
    person.press(" ")
    assert not person.run("return explorer.time.playing")
    person.press("f")
    ids = person.run("return explorer.app.about.ids.slice(4, 6)")
    person.press(f"{ids[0]}, {ids[1]}")
    assert person.run("return explorer.app.listed") == [4, 5]
    person.press("\ue00c", "0")
    assert len(person.run("return explorer.app.listed")) == 50


@browser_test
def test_filters_go_together_and_are_cleared_at_once(person, place):
    recording = Recording(place)
    label = int(np.bincount(recording.labels).argmax())
    person.run("explorer.app.change({filter: {...explorer.app.state.filter, labels: [arguments[0]]}})", label)
    person.drawn()
    assert person.run("return explorer.app.listed") == np.flatnonzero(recording.labels == label).tolist()
    person.run("explorer.app.change({filter: {...explorer.app.state.filter, right: 'wrong'}})")
    person.press("\ue010")
    wrong = (recording.labels == label) & ~recording.correct(16)[0]
    assert person.run("return explorer.app.listed") == np.flatnonzero(wrong).tolist()
    person.click(".clear")
    assert len(person.run("return explorer.app.listed")) == 50


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(served, scheme):
    with browsing(390, 844, scheme) as browser:
        person = Person(browser, served.url)
        person.open("t=8&pins=3,8&colour=label")
        assert person.run("return document.documentElement.scrollWidth") <= 390
        background = person.run("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(23, 24, 26)")
        assert complaints(browser) == []


@browser_test
def test_an_exported_page_opens_as_a_file(chromium, place, tmp_path, monkeypatch):
    file = tmp_path / "with <b>markup" / "page.html"
    file.parent.mkdir()
    done = run("explore", f"--recording={place}", f"--export={file}", "--seed=2")
    assert (done.returncode, done.stderr) == (0, "") and "seed 2, 17 records" in done.stdout
    person = Person(chromium, file.as_uri())
    person.open("t=5")
    stands(person, Recording(place), 2, 5)
    person.run("explorer.app.pin(6)")
    person.wait("Object.keys(explorer.histories.shown).length")
    shown = person.run("return [...Object.values(explorer.histories.shown)[0].loss]")
    np.testing.assert_allclose(shown, Recording(place).history(6).loss[2], rtol=HALF, atol=SUBNORMAL)
    person.run("explorer.app.select([1, 2, 3])")
    person.press("g")
    person.wait("explorer.histories.band")
    assert complaints(chromium) == []
    monkeypatch.setattr(export, "SPARE_BYTES", 3000)
    small, records = export.export(
        opened_for_showing(Recording(place)), 0, tmp_path / "small.html", file.stat().st_size - 5_000
    )
    assert records < 17 and small == (tmp_path / "small.html").stat().st_size < file.stat().st_size
    with pytest.raises(InputError, match="would be larger than"):
        export.export(opened_for_showing(Recording(place)), 0, tmp_path / "none.html", 1000)
    assert not (tmp_path / "none.html").exists()


@browser_test
def test_it_follows_a_run_that_goes_on(chromium, place, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "MOST_RECORDS", 4)
    copy, kept = tmp_path / "running", tmp_path / "kept"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("histories", "analysis"))
    kept.mkdir()
    for start in (6, 9, 12, 15):
        shutil.move(copy / "blocks" / str(start), kept / str(start))
    fd = lock(copy)  # as a run that is writing to it has
    server = Server(opened_for_showing(Recording(copy)))
    try:
        person = Person(chromium, server.url)
        person.open("t=5")
        assert "6 records so far" in person.browser.find_element("css selector", "header").text
        for start in (6, 9):
            shutil.move(kept / str(start), copy / "blocks" / str(start))
        person.wait("explorer.app.recording.iterations.length == 12")
        person.wait("explorer.app.state.iteration == 11 && explorer.settled")  # it showed the last one, and still does
        person.drawn()
        recording = Recording(place)
        stands(person, recording, 0, 11)
        for start in (12, 15):
            shutil.move(kept / str(start), copy / "blocks" / str(start))
        os.close(fd)
        person.wait("explorer.app.recording.finished && explorer.app.state.iteration == 16 && explorer.settled")
        person.drawn()
        stands(person, recording, 0, 16)
        assert complaints(chromium) == []
    finally:
        server.close()


@browser_test
def test_markup_stays_text(chromium, tmp_path, device):
    """In class names, ids and the names of directories; and a recording of which nothing can be shown says so."""
    import train_dynamics as td

    name = "<script>alert(1)</script>"
    rng = np.random.default_rng(0)
    path = tmp_path / "<img src=x onerror=alert(1)>"

    def loss(params, example):
        x, label = example
        logits = x @ params["w"]
        return -jax_log_softmax(logits)[label], logits

    import jax

    jax_log_softmax = jax.nn.log_softmax
    examples = rng.normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1])
    ids = [f"{name}{n}" for n in range(6)]
    with td.Recorder(
        path, loss, (examples, labels), ids=ids, class_names=[name, "b"], layers=["w"], log=lambda line: None
    ) as recorder:
        for t in range(3):
            recorder.record(t, {"w": np.full((3, 2), 0.1 * t, np.float32)})
    server = Server(opened_for_showing(Recording(path)))
    try:
        person = Person(chromium, server.url)
        person.open("pins=0&colour=label")
        person.press("a", "n")
        assert name in person.browser.find_element("css selector", "body").text
        assert "<img src=x" in person.browser.title
        assert person.run("return document.querySelectorAll('main script, main img, header img').length") == 0
        assert complaints(chromium) == []
        shutil.rmtree(path / "blocks")
        (path / "blocks").mkdir()
    finally:
        server.close()
    server = Server(opened_for_showing(Recording(path)))
    try:
        chromium.get(server.url)
        person = Person(chromium, server.url)
        person.wait("document.querySelector('.sorry')")
        assert "has no records" in person.browser.find_element("css selector", ".sorry").text
        chromium.get_log("browser")  # it tells of the answer 500
    finally:
        server.close()


def test_without_the_packages_of_a_server_it_says_what_to_install(small_path, tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "train_dynamics.explore", f"--recording={small_path}"]
    done = subprocess.run([*command, "--no_browser"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("explore: exploring needs the package uvicorn: pip install 'train-dynamics[explore]'")
    done = subprocess.run(
        [*command, f"--export={tmp_path / 'page.html'}"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and (tmp_path / "page.html").is_file(), done.stderr
