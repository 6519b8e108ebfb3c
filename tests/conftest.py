import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version

# Before JAX starts: several devices, so that dealing seeds out to them is tested on any machine.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A quarter of the time went into compiling well what runs for milliseconds. So most tests see other machine code than
# users do; those that are about it ask for theirs (`optimised`), and the wheel is tested with it.
if "--xla_backend_optimization_level" not in os.environ.setdefault("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if version("jaxlib").startswith("0.10."):  # later ones end where they find a flag that they do not know
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=2"

# What one process of the tests has compiled, the others need not: they run the same small studies over and over.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="train_dynamics_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.forks import Fork, sketching
from train_dynamics.commands import seldom_collect_garbage
from train_dynamics.config import StudyConfig

# What takes seconds to import is imported where it is used: the process that deals the tests out needs none of it.
if TYPE_CHECKING:
    import jax
    from flax import linen as nn

    from train_dynamics.data.datasets import Dataset
    from train_dynamics.recording.reader import Recording

seldom_collect_garbage()  # as the commands do

# Where the tests run in the background of a shell, it has Ctrl-C ignored by all that they start; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = StudyConfig(num_examples=50, batch_size=16, epochs=4, num_seeds=3, hidden_sizes=(5,))


LONGEST = (
    *("survival", "analyze", "tasks", "explore", "score_study", "train", "configs", "engine", "sweep", "schedule"),
    *("histories", "recorder", "further", "hosts", "sources", "mistakes", "package", "lineages", "engine_measures"),
    *("scores", "verification", "remote", "planning", "commands", "gradients"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or the last of them would run with nothing beside it."""
    place = {f"test_{name}.py": k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def silent(_: str) -> None:
    pass


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a recording that holds data, by relative path; Orbax dates its metadata."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")
    }


def run(module: str, *arguments: str, cwd=None, drawn: bool = False) -> subprocess.CompletedProcess:
    """Run a command, with the environment as it was when the tests began; its figures are sketches, if not `drawn`."""
    fork = Fork(module, *arguments, cwd=cwd, drawn=drawn)
    output = fork.communicate()
    return subprocess.CompletedProcess([module, *arguments], fork.returncode, *output)


def run_anew(module: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, with the environment as it is now."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-m", f"train_dynamics.{module}", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )


def logits_of(model: "nn.Module", parameters: dict, images: "jax.Array") -> "jax.Array":
    """For what is compared with, in full float32; left alone, GPUs would multiply in TF32."""
    import jax

    with jax.default_matmul_precision("highest"):
        return model.apply({"params": parameters}, images)


@pytest.fixture(scope="session")
def device() -> list["jax.Device"]:
    import jax

    return jax.local_devices()[:1]


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have blocks compiled as they are outside the tests."""
    from train_dynamics.training import sweep

    as_ever = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    monkeypatch.setitem(sweep.OPTIONS, "cpu", {**sweep.OPTIONS["cpu"], **as_ever})


@pytest.fixture(scope="session")
def small_dataset() -> "Dataset":
    from train_dynamics.data.datasets import load_dataset

    return load_dataset(SMALL)


@contextmanager
def blocks_of(length: int, dataset: "Dataset") -> Iterator[None]:
    """Record the small study in blocks of so many iterations."""
    from train_dynamics.training import sweep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "BLOCK_BYTES", length * sweep.plan(SMALL, dataset).record_bytes)
        yield


@pytest.fixture(scope="session")
def small_once(tmp_path_factory: pytest.TempPathFactory, device: list["jax.Device"], small_dataset: "Dataset") -> Path:
    """What `small_path` is made of, which no test may change, not even by what an analysis stores in a recording."""
    from train_dynamics.training import sweep

    path = tmp_path_factory.mktemp("small") / "recording"
    with blocks_of(3, small_dataset):
        sweep.train(SMALL, path, device, log=silent)
    return path


@pytest.fixture
def small_path(small_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished recording of the small study: 16 updates, 17 records, in blocks of three and a last one of two.

    Its files may be removed and others added, but none of them changed.
    """
    return shutil.copytree(small_once, tmp_path_factory.mktemp("small") / "recording", copy_function=os.link)


@pytest.fixture
def small(small_path: Path) -> "Recording":
    from train_dynamics.recording.reader import Recording

    return Recording(small_path)


@pytest.fixture(scope="session")
def analysed(request: pytest.FixtureRequest, small_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small recording with a whole analysis by the command, which takes long: one for all processes.

    No test may change it. What the command said is beside it.
    """
    of_this_process = tmp_path_factory.getbasetemp()
    place = of_this_process.parent if hasattr(request.config, "workerinput") else of_this_process
    with (place / "analysed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "analysed").exists():
            new = tmp_path_factory.mktemp("new")
            shutil.copytree(small_once, new / "copy")
            done = run("analyze", "--recording=copy", cwd=new, drawn=True)
            assert (done.returncode, done.stderr) == (0, "")
            (new / "said").write_text(done.stdout)
            new.rename(place / "analysed")
    recorded = [
        {name: data for name, data in contents(path).items() if name.split("/")[0] not in ("analysis", "histories")}
        for path in (place / "analysed" / "copy", small_once)
    ]
    assert recorded[0] == recorded[1]  # that of any other process, too
    return place / "analysed" / "copy"


@pytest.fixture
def sketches() -> Iterator[None]:
    with sketching():
        yield


@pytest.fixture
def blanks() -> Iterator[None]:
    """For another analysis of what is drawn by other tests."""
    with sketching(blank=True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
