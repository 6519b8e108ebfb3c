"""Time the stages of the whole job, recording and analysis of the default study, each beside its own floor.

    python -m benchmarks.stages [--directory=recordings]

One process does what `./run.sh` does in several, one stage after the other, with clocks around them; then the analysis
is timed as it is, a command whose stages overlap. Group dynamics is clocked in threads, whose seconds are added up.
Floors: the first layer's product; the bytes of the recording written and read with nothing else going on; the film's
pictures encoded, painted before.
"""

import functools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from train_dynamics.config import StudyConfig  # noqa: E402
from train_dynamics.dynamics.opposing import OpposingSignals  # noqa: E402
from train_dynamics.plots import film  # noqa: E402
from train_dynamics.recording.reader import Recording  # noqa: E402
from train_dynamics.recording.storage import write_array  # noqa: E402
from train_dynamics.recording.writer import Writer  # noqa: E402
from train_dynamics.report import analysis, writing  # noqa: E402
from train_dynamics.study import score_agreement  # noqa: E402
from train_dynamics.study.groups import GroupStudy  # noqa: E402
from train_dynamics.training import sweep  # noqa: E402

IMPORTED = time.perf_counter() - BEGAN
DIRECTORY = flags.DEFINE_string("directory", "recordings", "Directory to record into, for a while.")
SECONDS: dict[str, float] = {}


class Here(AbstractContextManager):
    """In place of the helpers: does everything at once, in this process."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done

    def __exit__(self, *error: object) -> None:
        pass


def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def with_clock(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            SECONDS[name] = SECONDS.get(name, 0) + time.perf_counter() - began

    return with_clock


def clock(place: Any, attribute: str, name: str) -> None:
    setattr(place, attribute, clocked(name, getattr(place, attribute)))


def compute_floor(recording: Recording) -> None:
    images = jnp.asarray(recording.inputs().reshape(len(recording.labels), -1))
    kernels = jnp.ones((images.shape[1], 8 * len(recording.seeds)))
    product = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))
    jax.block_until_ready(product(images, kernels))

    def compute() -> None:
        for _ in recording.iterations:
            product(images, kernels).block_until_ready()

    clocked("compute floor", compute)()


def write_floor(recording: Recording, directory: Path) -> None:
    """Write the arrays of a block as often as there are blocks."""
    block = next(recording.blocks())
    large = {name: np.ascontiguousarray(block.read(name)) for name in block.names}

    def write() -> None:
        with ThreadPoolExecutor(len(large)) as threads:
            for k, _ in enumerate(recording.blocks()):
                place = directory / f"floor_{k}"
                place.mkdir()
                list(
                    threads.map(
                        lambda item, at=place: write_array(at / item[0], item[1], 1 if item[1].nbytes > 1e8 else None),
                        large.items(),
                    )
                )

    clocked("write floor", write)()


def read_floor(recording: Recording) -> None:
    names = [n for n in next(recording.blocks()).names if not n.startswith("parameters")]

    def read(block: Any) -> int:
        return sum(row.nbytes for name in names for row in block.each(name))

    with ThreadPoolExecutor(4) as threads:
        clocked("read floor", lambda: sum(threads.map(read, recording.blocks())))()


def encode_painted(encode: Callable[..., None], pictures: Any, path: Path, fps: int) -> None:
    """Encode a film, and then again what was painted for it, which is the floor."""
    kept = []
    encode((kept.append(picture.copy()) or picture for picture in pictures), path, fps)
    began = time.perf_counter()
    encode(iter(kept), path.with_name("again.mp4"), fps)
    SECONDS["encode floor"] = time.perf_counter() - began
    path.with_name("again.mp4").unlink()


def set_clocks() -> None:
    clock(sweep, "load_dataset", "data")
    clock(sweep.Sweep, "__init__", "compile")
    clock(Writer, "__init__", "begin")
    clock(score_agreement, "study_scores", "study_scores")
    clock(writing, "claims", "claims")
    for name in ("compute", "find_cones", "find_contention", "make_histories"):
        clock(analysis, name, name)
    for name in ("find_lineages", "persistence"):
        clock(analysis, name, "lineages")
    for place, name in ((GroupStudy, "sums"), (GroupStudy, "measure"), (OpposingSignals, "add")):
        clock(place, name, "group dynamics")
    film.encode = functools.partial(encode_painted, film.encode)
    clock(film, "film", "film")
    analysis.Helpers = Here


def run_stages(directory: Path) -> None:
    path = directory / "recording"
    clocked("train", sweep.train)(StudyConfig(), path, log=lambda _: None)
    recording = Recording(path)
    clocked("one by one", analysis.analyze)(recording, path / "analysis")
    command = [sys.executable, "-m", "train_dynamics.analyze", f"--recording={path}"]
    clocked("analyze", subprocess.run)(command, check=True, stdout=subprocess.DEVNULL)
    compute_floor(recording)
    read_floor(recording)
    write_floor(recording, directory)


def main(_) -> None:
    logging.set_verbosity(logging.FATAL)
    Path(DIRECTORY.value).mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=DIRECTORY.value))
    set_clocks()
    try:
        run_stages(directory)
    finally:
        shutil.rmtree(directory)
    print_table()


def print_table() -> None:
    s = SECONDS
    s["film"] -= s["encode floor"]
    s["one by one"] -= s["encode floor"]
    loop = s["train"] - s["data"] - s["compile"] - s["begin"]
    rest = s["one by one"] - sum(
        s[name]
        for name in (
            "compute",
            "study_scores",
            "find_cones",
            "lineages",
            "find_contention",
            "make_histories",
            "claims",
            "film",
        )
    )
    table = (
        ("imports, of both", IMPORTED, None, ""),
        ("train: data decoded", s["data"], None, ""),
        ("train: programs compiled", s["compile"], None, ""),
        ("train: update, record and store", loop, s["compute floor"], "first layer's product"),
        ("", loop, s["write floor"], "its bytes written"),
        ("analyze: pass, with all streamed scores", s["compute"], s["read floor"], "its bytes read"),
        ("  of that, group dynamics", s["group dynamics"], None, ""),
        ("analyze: correlations and stability", s["study_scores"], None, ""),
        ("analyze: cones", s["find_cones"], None, ""),
        ("analyze: cones followed through training", s["lineages"], None, ""),
        ("analyze: contention", s["find_contention"], None, ""),
        ("analyze: histories", s["make_histories"], None, ""),
        ("analyze: claims", s["claims"], None, ""),
        ("analyze: film", s["film"], s["encode floor"], "its pictures encoded"),
        ("analyze: figures, tables, report", rest, None, ""),
        ("analyze: these one after the other", s["one by one"], None, ""),
        ("analyze: the command, side by side", s["analyze"], None, ""),
        ("all", IMPORTED + s["train"] + s["analyze"], None, ""),
    )
    print(f"{'stage':42} {'seconds':>8} {'floor':>8} {'ratio':>6}")
    for name, seconds, floor, words in table:
        ratio = f"{floor:8.1f} {seconds / floor:6.1f}   {words}" if floor else ""
        print(f"{name:42} {seconds:8.1f} {ratio}")


if __name__ == "__main__":
    app.run(main)
