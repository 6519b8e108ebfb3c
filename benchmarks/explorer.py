"""How fast the explorer's page is, in a real browser: its start, a step of the slider, play, a history, and memory.

    python -m benchmarks.explorer [--recording=recordings/mini_mnist] [--large] [--steps=60]

Needs Chromium and chromedriver, and the package selenium. A step is told twice: until everything is handed to the
renderer, which is what the page takes; and until that has drawn it. Headless Chromium draws by the processor
(SwiftShader), which takes far longer than a graphics card. `--large` makes a recording of 60,000 examples and 2,000
records in a temporary directory first, which takes some minutes and 6 GB.
"""

import argparse
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.browser import browsing


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/mini_mnist")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if not options.large:
        measure(Path(options.recording), options.steps)
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "large"
        record_large(path)
        measure(path, options.steps)


def record_large(path: Path, examples: int = 60_000, records: int = 2_000) -> None:
    """Record a linear classifier of a few numbers: measures of many examples at many iterations."""
    import jax

    import train_dynamics as td

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, examples)
    inputs = (rng.normal(size=(10, 8))[labels] + 1.5 * rng.normal(size=(examples, 8))).astype(np.float32)

    def loss(params, example):
        x, label = example
        logits = x @ params["kernel"]
        return -jax.nn.log_softmax(logits)[label], logits

    @jax.jit
    def update(params, batch):
        mean = lambda params: jax.vmap(loss, (None, 0))(params, batch)[0].mean()  # noqa: E731
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(mean)(params))

    began = time.perf_counter()
    params = {"kernel": jax.numpy.zeros((8, 10))}
    with td.Recorder(path, loss, (inputs, labels), gradient_layout="measures", log=lambda line: None) as recorder:
        for t in range(records):
            recorder.record(t, params)
            chosen = rng.integers(0, examples, 256)
            params = update(params, (inputs[chosen], labels[chosen]))
    print(f"recorded {examples:,} examples x {records:,} records in {time.perf_counter() - began:.0f} s")


def measure(path: Path, steps: int) -> None:
    """Open the page of a recording and time what a user does."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "train_dynamics.explore", f"--recording={path}", "--no_browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        print(f"server ready after {time.perf_counter() - began:.1f} s")
        with browsing(1400, 900) as browser:
            browser.set_script_timeout(600)
            browser.get(url)
            wait(browser, "window.explorer && explorer.app.firstPicture")
            first = browser.execute_script("return explorer.app.firstPicture")
            print(f"first picture       {first / 1000:6.2f} s after the page's start")
            began = time.perf_counter()
            wait(browser, "explorer.settled")
            last = browser.execute_script("return explorer.app.recording.iterations.length - 1")
            print(f"all loaded that is kept after {time.perf_counter() - began:.1f} s more")
            for words, places in (
                ("random places", [random.Random(0).uniform(0, last) for _ in range(steps)]),
                ("a slow drag", [0.3 * last + 0.37 * k for k in range(steps)]),
            ):
                times = [browser.execute_script("return explorer.measure(arguments[0])", place) for place in places]
                handed, rendered = ([one[key] for one in times] for key in ("handed", "rendered"))
                print(
                    f"step, {words:14}{quantiles(handed)} until handed over, "
                    f"{quantiles(rendered)} until drawn by software"
                )
            browser.execute_script("explorer.app.go(0); explorer.app.change({speed: 120}); explorer.time.toggle()")
            time.sleep(0.5)
            place = "return [performance.now(), explorer.app.record]"
            (t0, r0), _, (t1, r1) = browser.execute_script(place), time.sleep(4), browser.execute_script(place)
            browser.execute_script("explorer.time.stop()")
            print(f"play at 120 records/s went at {1000 * (r1 - r0) / (t1 - t0):.1f}")
            ask = (
                "const done = arguments[1], began = performance.now();"
                "const {source, front} = explorer.app;"
                "source.history(front, arguments[0]).then(() => done(performance.now() - began))"
            )
            count = browser.execute_script("return explorer.app.about.numExamples")
            chosen = random.Random(1).sample(range(count), 20)
            print(f"history of one      {quantiles([browser.execute_async_script(ask, n) for n in chosen])}")
            wait(browser, "explorer.settled")
            held = browser.execute_script("return explorer.app.frames.bytes")
            heap = browser.execute_script("return performance.memory.usedJSHeapSize")
            print(
                f"memory: page {heap / 1e6:.0f} MB of scripts and {held / 1e6:.0f} MB of frames, "
                f"server {peak(server.pid)}"
            )
    finally:
        server.terminate()
        server.wait()


def wait(browser, condition: str) -> None:
    """Wait for something on the page."""
    while not browser.execute_script(f"return Boolean({condition})"):
        time.sleep(0.02)


def quantiles(times: list[float]) -> str:
    """Write median and the slowest of twenty."""
    return f"{statistics.median(times):6.1f} ms (95 % below {np.quantile(times, 0.95):.1f})"


def peak(pid: int) -> str:
    """Write the most memory that a process had."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return "unknown here"
    kilobytes = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return f"{kilobytes / 1e3:.0f} MB at most"


if __name__ == "__main__":
    main()
