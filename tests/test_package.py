"""The wheel, the flag files and the words of the README."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from train_dynamics.recording.reader import Recording

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.flags"))


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_directory(tmp_path):
    """Installed from its wheel, into an environment that sees only the libraries of this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a copy: building leaves files beside what it builds
    shutil.copytree(ROOT / "train_dynamics", source / "train_dynamics", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True)
    (built,) = tmp_path.glob("train_dynamics-*.whl")
    names = zipfile.ZipFile(built).namelist()
    assets = {file.relative_to(ROOT).as_posix() for file in (ROOT / "train_dynamics" / "explorer" / "assets").iterdir()}
    assert {"train_dynamics/data/README.md", "train_dynamics/report/page.html.j2", *assets} <= set(names)
    assert not any(name.startswith(("tests/", "tools/", "benchmarks/")) for name in names)

    target = tmp_path / "installed"
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(built)]
    subprocess.run(install, check=True)
    assert "train_dynamics.__main__" in (target / "bin" / "train-dynamics").read_text()
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target), "XLA_FLAGS": ""}  # so that its programs are optimised
    arguments = ["--recording=out", "--num_examples=64", "--batch_size=32", "--epochs=1", "--seeds=2"]
    analyze = ["--recording=out", "--parts="]
    (tmp_path / "empty" / "loop.py").write_text(program_of_readme("td.Recorder("))
    for command in (
        ["-m", "train_dynamics.train", *arguments],
        ["-m", "train_dynamics.analyze", *analyze],
        ["loop.py"],
    ):
        subprocess.run([sys.executable, *command], check=True, cwd=tmp_path / "empty", env=environment)
    where = "import train_dynamics; print(train_dynamics.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path / "empty", env=environment, capture_output=True)
    assert str(target) in found.stdout.decode()
    assert Recording(tmp_path / "empty" / "out").num_records == 3
    assert Recording(tmp_path / "empty" / "recordings" / "loop").iterations.tolist() == list(range(50))
    assert (tmp_path / "empty" / "out" / "analysis" / "report.html").is_file()


def program_of_readme(part: str) -> str:
    """The one program of the README that has this in it."""
    text = (ROOT / "README.md").read_text()
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if part in block)
    return program


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


RECORDING_LANE = ("train.py", "record.py", "further.py", "task", "gradients", "training", "recording/writer.py")
ANALYSIS_LANE = (
    "analyze.py",
    "animate.py",
    "verify.py",
    "dynamics",
    "study",
    "plots",
    "report",
    "explore.py",
    "explorer",
)
SHARED = ("__main__.py", "config.py", "commands.py", "processes.py", "progress.py", "data", "recording")


def files(names: tuple[str, ...]) -> dict[str, Path]:
    """Modules of a part of the package, by their full names."""
    package = ROOT / "train_dynamics"
    found = [path for name in names for path in [package / name, *(package / name).rglob("*.py")] if path.is_file()]
    assert len(found) >= len(names)
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


BRIDGE = "train_dynamics.training.replay"
"""Where a user has named a network's code, these two import this, and nothing else of the recording lane, to run it."""
CROSSING = ("train_dynamics.verify", "train_dynamics.analyze")


def test_the_lanes_meet_in_the_recording_alone():
    recording, analysis = files(RECORDING_LANE), files(ANALYSIS_LANE)
    shared = {name: path for name, path in files(SHARED).items() if name not in recording}
    everything = {**recording, **analysis, **shared, "train_dynamics": ROOT / "train_dynamics" / "__init__.py"}
    assert set(everything.values()) == set((ROOT / "train_dynamics").rglob("*.py"))
    for name, path in analysis.items():
        crossed = {BRIDGE} if name in CROSSING else set()
        assert not imports(path) & ({*recording} - crossed | {"jax", "flax", "optax"}), name
    for name, path in shared.items():
        assert not imports(path) & ({*recording, *analysis} | {"jax", "flax", "optax"}), name
    for name, path in recording.items():
        assert not imports(path) & {*analysis}, name
    users_of_orbax = {name for name, path in everything.items() if "orbax.checkpoint" in imports(path)}
    assert users_of_orbax == {"train_dynamics.recording.writer", "train_dynamics.training.weights"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_flag_files_say_what_they_cost_and_parse(path):
    text = path.read_text()
    assert f"./run.sh configs/{path.name}" in text
    assert re.search(r"Expect: .*\d (seconds|minutes?) and .*\d [MG]B on two cores", text)
    program = (
        "from absl import flags; from train_dynamics import train; train.define_config_flags();"
        f"flags.FLAGS(['train', '--flagfile={path}']); train.config_from_flags()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_readme_shows_what_there_is():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture
    for command in ("./run.sh", "./run.sh test"):
        assert command in text


def test_the_readme_program_runs(small_path, tmp_path):
    program = program_of_readme("= Recording(")
    assert len(program.splitlines()) <= 5
    program = re.sub(r'Recording\("[^"]*"\)', f"Recording({str(small_path)!r})", program)
    program = re.sub(r"t=\d+", "t=10", program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5  # the rows of a [5, 10] gradient, give or take wrapping
