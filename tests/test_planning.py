"""What a run will take, told before it starts."""

import dataclasses
import json
import re
import shutil
import time
from collections import namedtuple

import pytest

from tests.conftest import SMALL, run, silent
from train_dynamics.config import StudyConfig, time_in_words
from train_dynamics.recording.reader import Recording
from train_dynamics.training import planning, sweep
from train_dynamics.training.planning import forecast, told, ways_to_fit

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_the_bytes_are_those_of_the_plan_and_nothing_is_left(tmp_path, small_dataset, device):
    found = forecast(SMALL, small_dataset, tmp_path / "out", time.monotonic(), device)
    assert (found.num_records, found.disk_bytes) == (17, sweep.plan(SMALL, small_dataset).bytes_from(0))
    assert 0 < found.record_seconds * 17 < found.seconds < 120 and found.memory_bytes > 1e8
    assert not list(tmp_path.iterdir())
    one = dataclasses.replace(SMALL, epochs=1, batch_size=50)  # two records, of which no trial can be made
    assert forecast(one, small_dataset, tmp_path / "out", time.monotonic(), device).num_records == 2


def test_the_command_records_nothing(tmp_path):
    flags = ["--num_examples=60", "--batch_size=20", "--epochs=4", "--seeds=2", "--recording=out"]
    done = run("train", *flags, "--plan", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())
    assert re.match(
        r"Plan for out, from a trial.*\n  13 records of 2 seeds\n  .* of disk space; .*\n  .* of memory", done.stdout
    )
    assert run("train", *flags, cwd=tmp_path).returncode == 0
    planned = float(re.search(r"([\d.]+) kB of disk", done.stdout)[1]) * 1000
    arrays = sum(block.read(name).nbytes for block in Recording(tmp_path / "out").blocks() for name in block.names)
    assert arrays < planned < 2 * arrays  # besides records it holds the states at the ends of blocks


@pytest.mark.parametrize("share", [0.6, 0.2, 0.05])
def test_each_way_fits_and_takes_as_much_as_it_says(small_dataset, share):
    config = dataclasses.replace(SMALL, batch_size=1, epochs=8)
    whole = sweep.plan(config, small_dataset).bytes_from(0)
    ways = ways_to_fit(config, small_dataset, int(share * whole))
    assert 1 <= len(ways) <= 3
    assert [way.disk_bytes for way in ways] == sorted((way.disk_bytes for way in ways), reverse=True)
    for way in ways:
        name, value = way.flags.removeprefix("--").split("=")
        name = {"seeds": "num_seeds"}.get(name, name)
        changed = dataclasses.replace(config, **{name: json.loads(value) if value.isdigit() else value})
        assert sweep.plan(changed, small_dataset).bytes_from(0) == way.disk_bytes <= share * whole


def test_what_does_not_fit_is_told_with_what_would(small_dataset, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, batch_size=1, epochs=8)
    whole = sweep.plan(config, small_dataset).bytes_from(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(whole, 0, whole // 2))
    said = []
    found = planning.Forecast(401, whole, 2 * planning.memory_of_machine(), 10.0, 0.01)
    assert not told(found, config, small_dataset, tmp_path / "out", said.append)
    text = "\n".join(said)
    assert "It does not fit on the disk. These flags would make it fit:" in text and "--record_every=" in text
    assert "It does not fit in memory" in text and "--seeds=1, and later the others with --first_seed=1" in text
    with pytest.raises(sweep.InputError, match=r"but only .* are free; choose another disk, or --\w+"):
        sweep.train(config, tmp_path / "out", log=silent, dataset=small_dataset)
    assert not list(tmp_path.iterdir())


def test_a_run_says_how_long_it_will_take_once_it_knows(tmp_path, small_dataset, device, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_ITERATIONS", 3)
    said = []
    sweep.train(SMALL, tmp_path / "out", device, log=said.append, dataset=small_dataset)
    assert [line for line in said if re.fullmatch(r"About \d+ s to go, with [\d.]+ [MG]B of memory so far", line)]


def test_a_run_that_fits_nowhere_has_no_ways(small_dataset):
    assert ways_to_fit(StudyConfig(num_examples=50, num_seeds=1), small_dataset, 10) == []


def test_times():
    assert [time_in_words(s) for s in (16.2, 4000.0, 36000.0)] == ["16 s", "67 min", "10.0 h"]
