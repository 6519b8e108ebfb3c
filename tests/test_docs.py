"""The pages do what they say: their programs and commands run, their links and pictures are there."""

import contextlib
import csv
import doctest
import importlib
import io
import pkgutil
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import train_dynamics
from tests.conftest import run
from tools.site_hooks import MARK, flags_of, on_page_markdown
from train_dynamics.config import StudyConfig
from train_dynamics.data.datasets import load_dataset
from train_dynamics.training.setup import prepare

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
COMMANDS = ("train", "record", "analyze", "explore", "animate", "verify", "further")


def blocks(page: Path, *languages: str) -> list[str]:
    """The programs of a page in some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Commands of train_dynamics in the blocks of a page: which, and their arguments."""
    lines = "".join(blocks(page, "bash", "")).replace("\\\n", " ").splitlines()
    command = re.compile(r"(?:srun )?(?:\.venv/bin/)?python -m train_dynamics\.(\w+)(.*)")
    found = (command.fullmatch(line.strip()) for line in lines)
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def execute(program: str, page: str, names: dict | None = None) -> str:
    """Run a program of a page, and give what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(program, page, "exec"), {} if names is None else names)
    return said.getvalue()


def test_networks_of_your_own(tmp_path, device, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linen, module, plain, again = blocks(DOCS / "NETWORKS.md", "python")
    for name, program in {"net": linen, "Net": module}.items():
        Path(f"{name}_{len(program)}.py").write_text(program)
        config = StudyConfig(model=f"{name}_{len(program)}.py:{name}", num_examples=20)
        prepared = prepare(config, load_dataset(config))
        assert {"conv1/kernel", "head/kernel"} < set(prepared.contents.layers)
    rng = np.random.default_rng(0)
    names = {"inputs": rng.normal(size=(12, 4)), "labels": rng.integers(3, size=12)}
    program = plain.replace("epochs=5", "epochs=1")
    assert program != plain
    execute(program, "NETWORKS.md", names)
    assert names["recording"].gradients("out", 1).shape == (3, 12, 8, 3)
    program, analysis = again.split("analyze(recording")
    assert execute(program, "NETWORKS.md", names).splitlines()[-1] == "[]" and "networks=networks" in analysis


@pytest.mark.slow
def test_the_readme_is_short_and_its_commands_run(small_path, tmp_path):
    """All but `./run.sh`, which the next test runs, with what it starts replaced."""
    page = ROOT / "README.md"
    assert len(page.read_text().splitlines()) <= 150
    shutil.copytree(small_path, tmp_path / "recordings" / "mini_mnist")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=rng.normal(size=(24, 6, 6, 1)).astype(np.float32), labels=np.arange(24) % 10)
    (program,) = (block for block in blocks(page, "python") if "net = " in block)
    (tmp_path / "nets.py").write_text(program)
    shorter = {
        "train": ["--epochs=1", "--seeds=2"],
        "analyze": ["--parts="],
        "explore": ["--export=page.html"],
        "verify": ["--samples=2"],
    }
    ran = []
    for name, arguments in commands(page):
        done = run(name, *arguments, *shorter[name], cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), (name, arguments)
        ran.append(name)
    assert sorted(ran) == ["analyze", "explore", "train", "verify"]
    assert (tmp_path / "recordings/mine/analysis/report.html").is_file() and (tmp_path / "page.html").is_file()
    scripts = re.findall(r"^\S*run\.sh.*?(?=\s*#|$)", "".join(blocks(page, "bash")), re.M)
    assert scripts == ["./run.sh", "./run.sh test"]


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (
            [],
            [
                "-m train_dynamics.train --flagfile={root}/configs/mini_mnist.flags --recording=recordings/mini_mnist",
                "-m train_dynamics.analyze --recording=recordings/mini_mnist",
            ],
        ),
        (
            ["configs/smoke.flags"],
            [
                "-m train_dynamics.train --flagfile={root}/configs/smoke.flags --recording=recordings/smoke",
                "-m train_dynamics.analyze --recording=recordings/smoke",
            ],
        ),
        (["test", "-k", "docs"], ["check .", "format --check .", "-c", "-m pytest -n 2 --dist loadfile", "-k docs"]),
    ],
)
def test_the_two_commands_start_what_the_readme_says(tmp_path, arguments, started):
    """In an environment that is made already, whose programs only note that they were started."""
    for name in ("run.sh", "pyproject.toml", "setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "ruff"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/started\n[ "$1" != -c ] || echo 2\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    # As `$(cat ...)` has it: without the line feeds at the end.
    made_from = "".join((tmp_path / name).read_text() for name in ("pyproject.toml", "setup.cfg", "constraints.txt"))
    (tmp_path / ".venv/made_from").write_text(made_from)
    subprocess.run(["./run.sh", *arguments], cwd=tmp_path, check=True)
    noted = (tmp_path / "started").read_text()
    place = 0
    for part in started:
        place = noted.index(part.format(root=tmp_path.resolve()), place)
    assert "pip" not in noted


def test_commands_of_all_pages_have_flags_that_exist():
    known = {}
    for name in COMMANDS:
        said = ElementTree.fromstring(run(name, "--helpxml").stdout)
        known[name] = {"flagfile"} | {flag.findtext("name") for flag in said.iter("flag")}
    found = [(page.name, *command) for page in PAGES for command in commands(page)]
    assert len(found) > 30 and {name for _, name, _ in found} == set(COMMANDS)
    for page, name, arguments in found:
        for argument in arguments:
            flag = argument.removeprefix("--").partition("=")[0]
            assert argument.startswith("--") and {flag, flag.removeprefix("no")} & known[name], (page, name, argument)


def test_the_programs_about_reading_run(small_path, tmp_path, monkeypatch):
    shutil.copytree(small_path, tmp_path / "recordings" / "mini_mnist")
    monkeypatch.chdir(tmp_path)
    program = blocks(DOCS / "READING.md", "python")[0]
    names: dict = {}
    execute(program.replace("100", "8"), "READING.md", names)
    assert names["gradients"].shape == (3, 50, 5, 10) and names["losses"].shape[0] == 3
    program = blocks(DOCS / "TUTORIAL.md", "python")[0]
    shorter = program.replace("100:301", "2:9").replace("-300:", "-3:")
    assert "2:9" in shorter and "-3:" in shorter
    execute(shorter, "TUTORIAL.md", names := {})
    correct = np.stack([names["recording"].predictions(t)[0] == names["recording"].labels for t in range(17)])
    np.testing.assert_array_equal(names["correct"], correct)
    execute(blocks(DOCS / "DATA.md", "python")[0], "DATA.md")


def test_an_image_folder_is_recorded_as_the_page_says(tmp_path):
    import cv2

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for k in range(6):
            image = rng.integers(255, size=(40, 30, 3), dtype=np.uint8)
            assert cv2.imwrite(str(tmp_path / "photos" / label / f"{k}.png"), image)
    (name, arguments), _ = commands(DOCS / "MISLABELLED.md")
    done = run(name, *arguments, "--epochs=1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    recording = train_dynamics.Recording(tmp_path / "recordings/photos")
    assert recording.ids[0] == "cat/0.png" and len(recording.seeds) == 3


def test_a_table_is_recorded_as_the_tutorial_says(tmp_path):
    (arguments,) = (given for _, given in commands(DOCS / "TUTORIAL.md") if "--labels=diagnosis" in given)
    place = tmp_path / "tumours"
    done = run("train", *arguments, "--epochs=1", "--seeds=2", f"--recording={place}", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    recording = train_dynamics.Recording(place)
    assert recording.class_names == ("benign", "malignant") and np.bincount(recording.labels).tolist() == [357, 212]


@pytest.mark.slow
def test_the_tables_have_the_columns_of_the_page(analysed, tmp_path, monkeypatch):
    """And the programs that read them, and histories, run."""
    page = (DOCS / "TABLES.md").read_text()
    sections = dict(zip(*[iter(re.split(r"^## (.*)\n", page, flags=re.M)[1:])] * 2, strict=True))
    tables = {file for heading in sections for file in heading.split(", ")}
    scores = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "SCORES.md").read_text(), re.M))
    written = sorted((analysed / "analysis").glob("*.csv"))
    assert len(written) >= 10 and {path.name for path in written} < tables
    for path in written:
        (section,) = (text for heading, text in sections.items() if path.name in heading.split(", "))
        with path.open(newline="") as file:
            columns = set(next(csv.reader(file)))
        assert columns <= set(re.findall(r"`(\w+)`", section)) | scores, path.name

    for name in ("mini_mnist", "photos", "tumours"):
        shutil.copytree(analysed, tmp_path / "recordings" / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {"recording": train_dynamics.Recording("recordings/mini_mnist")}
    history = blocks(DOCS / "READING.md", "python")[1]
    execute(re.sub(r"100, 164\)", "0, 8)", history), "READING.md", names)
    assert names["history"].loss.shape == (3, 17) and names["gradients"].shape == (3, 17, 5, 10)
    pytest.importorskip("pandas", reason="pandas is not installed")
    (suspects,) = blocks(DOCS / "MISLABELLED.md", "python")
    assert len(execute(suspects, "MISLABELLED.md").splitlines()) == 21
    assert len(execute(blocks(DOCS / "TUTORIAL.md", "python")[1], "TUTORIAL.md").splitlines()) == 11
    execute(blocks(DOCS / "SCORES.md", "python")[0], "SCORES.md")


def places(page: Path) -> set[str]:
    """What a link can name inside a page: its headings, as GitHub and MkDocs call them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_pages_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            file, _, place = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not place or place in places(target), link
            assert page.parent != DOCS or target.resolve().is_relative_to(DOCS), (link, "lies outside the site")


def test_pictures_are_small():
    assert all(file.stat().st_size < 400_000 for file in (DOCS / "figures").glob("networks_*.png"))
    assert (DOCS / "figures" / "training.gif").stat().st_size < 3_000_000


def test_the_page_of_python_has_every_public_name():
    named = re.findall(r"^::: train_dynamics\.(\S+)", (DOCS / "PYTHON.md").read_text(), re.M)
    assert sorted(named) == sorted(f"{module}.{name}" for name, module in train_dynamics.PUBLIC.items())
    for path in named:
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(f"train_dynamics.{module}"), name).__doc__


class Values(doctest.OutputChecker):
    """Compares values, however NumPy lays them out: without white space, and `np.float64(1.5)` as 1.5."""

    def check_output(self, want, got, optionflags):
        want, got = ("".join(re.sub(r"np\.\w+\((.*?)\)", r"\1", text).split()) for text in (want, got))
        return super().check_output(want, got, optionflags)


NEEDING_MORE = ("study", "recordings/")  # examples that go on from something which is not there


def test_the_examples_of_pure_functions_give_what_they_show():
    ran, failed = 0, {}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(Values(), optionflags=doctest.ELLIPSIS)
    for package in ("data", "dynamics"):
        path = [str(ROOT / "train_dynamics" / package)]
        for found in pkgutil.walk_packages(path, f"train_dynamics.{package}."):
            for test in finder.find(importlib.import_module(found.name), extraglobs={"np": np}):
                sources = "".join(example.source for example in test.examples)
                if not any(word in sources for word in NEEDING_MORE):
                    said: list[str] = []
                    if runner.run(test, out=said.append).failed:
                        failed[test.name] = "".join(said)
                    ran += len(test.examples)
    assert not failed, "\n".join(failed.values())
    assert ran > 60


def test_the_page_of_flags_has_every_command():
    text = (DOCS / "FLAGS.md").read_text()
    assert MARK.findall(text) == list(COMMANDS)
    assert flags_of("animate")["fps"] == ("Frames per second: 1 to 120, or 1 to 50 for a .gif.", "30")
    filled = on_page_markdown("## animate\n\n<!-- flags: animate -->\n")
    assert (
        "`--fps`, by default `30`\n:   Frames per second: 1 to 120, or 1 to 50 for a .gif.\n" in filled
        and "<!--" not in filled
    )


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Recorder" in (tmp_path / "site/PYTHON/index.html").read_text()
    assert "--gradient_layout" in (tmp_path / "site/FLAGS/index.html").read_text()
