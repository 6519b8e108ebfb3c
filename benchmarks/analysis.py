"""Time the analysis of a recording against merely reading its bytes through the same reader, interleaved in one run.

    python benchmarks/analysis.py [--recording=recordings/mini_mnist] [--rounds=3]

All run in processes of their own, so that start, imports and peak memory count, and read from the disk. "Study" is the
published study alone, `analyze --parts=`: curves, ranking, claims, their figures and the report. "Analyze" is the whole
command, with all scores, groups, film, cones and contention.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

READ = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from train_dynamics.recording.reader import Recording
recording = Recording(sys.argv[1])
names = [path.name.removeprefix("record.") for path in next(recording.blocks()).path.glob("record.*")]
names = [name for name in names if not name.startswith(("parameters", "loss"))]
with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
    size = lambda block: sum(row.nbytes for name in names for row in block.each(name))
    print(sum(threads.map(size, recording.blocks())))
"""
RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "A finished recording.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that both take turns.", lower_bound=1)


def timed(*arguments: str) -> tuple[float, float, bytes]:
    """Seconds, peak memory in GB and output of a Python process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9, output


def forget(recording: str) -> None:
    """Drop a recording from the page cache, where `train` leaves nothing of it either."""
    for directory, _, names in os.walk(recording):
        for name in names:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def analysis(*options: str) -> tuple[float, float, bytes]:
    output = tempfile.mkdtemp()
    try:
        command = ("-m", "train_dynamics.analyze", f"--recording={RECORDING.value}", f"--output={output}/analysis")
        return timed(*command, *options)
    finally:
        shutil.rmtree(output)


def main(_) -> None:
    ways = {
        "read": lambda: timed("-c", READ, RECORDING.value),
        "study": lambda: analysis("--parts="),
        "analyze": analysis,
    }
    found: dict[str, list[tuple[float, float, bytes]]] = {name: [] for name in ways}
    for round in range(ROUNDS.value + 1):
        for name, way in ways.items():
            forget(RECORDING.value)
            run = way()
            if round:  # the first is a warm-up
                found[name].append(run)
    size = int(found["read"][0][2]) / 1e9
    print(f"{RECORDING.value}: {size:.1f} GB that the analysis needs, from the disk, {ROUNDS.value} rounds")
    print(f"{'seconds':12} {'median':>8} {'min':>8} {'max':>8} {'GB peak':>8}")
    for name, runs in found.items():
        seconds = [run[0] for run in runs]
        peak = max(run[1] for run in runs)
        print(f"{name:12} {statistics.median(seconds):8.1f} {min(seconds):8.1f} {max(seconds):8.1f} {peak:8.2f}")
    for name in ("study", "analyze"):
        ratio = statistics.median(a[0] / r[0] for a, r in zip(found[name], found["read"], strict=True))
        print(f"{name + ' / read':16} {ratio:12.2f}   (target: at most 1.5; peak memory: at most 2 GB)")


if __name__ == "__main__":
    app.run(main)
