"""Recordings of chosen iterations, and examples evaluated a few at a time."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.conftest import SMALL, blocks_of, contents, run, silent
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.datasets import load_dataset
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.writer import Writer
from train_dynamics.report import analysis
from train_dynamics.study.motion import nearest
from train_dynamics.training import sweep

SCHEDULES = {
    "every third": ({"record_every": 3}, [0, 3, 6, 9, 12, 15, 16]),
    "every fourth": ({"record_every": 4}, [0, 4, 8, 12, 16]),
    "ends only": ({"record_every": 99}, [0, 16]),
    "doubling": ({"records_per_doubling": 2}, [0, 1, 2, 3, 4, 6, 8, 12, 16]),
    "doubling from one": ({"records_per_doubling": 1}, [0, 1, 2, 4, 8, 16]),
}


@pytest.mark.parametrize(("change", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_iterations_by_hand(change, expected):
    assert dataclasses.replace(SMALL, **change).iterations(50).tolist() == expected


def test_a_doubling_adds_the_same_number_of_records_each():
    iterations = StudyConfig(batch_size=1, epochs=1, records_per_doubling=10).iterations(20 * 2**10)
    gaps = np.diff(iterations)
    assert (gaps == [1] * 20 + [2**k for k in range(1, 11) for _ in range(10)]).all()


def record(path, dataset, device, block=3, **change) -> Recording:
    with blocks_of(block, dataset):
        sweep.train(dataclasses.replace(SMALL, **change), path, device, log=silent)
    return Recording(path)


@pytest.mark.parametrize(("change", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_records_are_those_of_a_recording_of_every_iteration(
    tmp_path, small, small_dataset, device, change, expected
):
    found = record(tmp_path / "some", small_dataset, device, **change)
    assert found.finished and found.iterations.tolist() == expected
    assert [t for block in found.blocks() for t in block.iterations] == expected
    # Two programs, which may add in another order. In either, 16 updates round weights below 1 by 6e-8 each at most;
    # losses and gradients are below 10, where float32 rounds by 5e-7, and of these weights.
    for t in expected:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found.parameters(t), small.parameters(t)
        )
        np.testing.assert_allclose(found.loss(t), small.loss(t), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.gradients("fc2", t), small.gradients("fc2", t), rtol=0, atol=1e-5)
    for t in set(range(-1, 18)) - set(expected):
        with pytest.raises(IndexError, match=f"iteration {t} is not among the {len(expected)} records"):
            found.loss(t)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_interrupted_schedule_goes_on_bit_for_bit(tmp_path, small_dataset, device, monkeypatch, momentum):
    change = {"records_per_doubling": 2, "momentum": momentum}
    record(tmp_path / "whole", small_dataset, device, **change)
    save = Writer.save

    def interrupted(self, start, *args):
        if start == 8:
            raise KeyboardInterrupt
        save(self, start, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(tmp_path / "parts", small_dataset, device, **change)
    assert Recording(tmp_path / "parts").iterations.tolist() == [0, 1, 2, 3, 4, 6]
    record(tmp_path / "parts", small_dataset, device, **change)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_another_schedule_is_another_recording(small_path, small_dataset, device):
    with pytest.raises(InputError, match="--record_every 2 instead of 1"):
        record(small_path, small_dataset, device, record_every=2)


@pytest.mark.parametrize("layout", ["factored", "dense"])
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_evaluation_in_slices_gives_the_same_numbers(tmp_path, small, small_dataset, device, size, layout):
    config = dataclasses.replace(SMALL, eval_batch_size=size, gradient_layout=layout)
    sweep.train(config, tmp_path / "sliced", device, log=silent)
    sliced = Recording(tmp_path / "sliced")
    for t in (0, 5, 16):  # products of other shapes may add in another order: rounding, as above
        np.testing.assert_allclose(sliced.loss(t), small.loss(t), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(sliced.predictions(t), small.predictions(t))
        np.testing.assert_allclose(sliced.gradients("fc2", t), small.gradients("fc2", t), rtol=0, atol=1e-5)


def test_slices_bound_the_memory_of_an_evaluation():
    """Of what is needed besides arguments and results, by the compiler's own account."""
    whole = StudyConfig(hidden_sizes=(1000,), num_seeds=1)
    needed = {}
    for size in (None, 100):
        swept = sweep.Sweep(
            dataclasses.replace(whole, eval_batch_size=size), load_dataset(whole), 1, jax.local_devices()[:1]
        )
        needed[size] = swept._run.memory_analysis().temp_size_in_bytes
    hidden = 6000 * 1000 * 4  # the hidden layer of all examples; on GPUs, a part of it lies where other things do
    assert needed[100] < needed[None] - hidden / 2


def test_slices_go_on_from_a_recording_made_without(tmp_path, small_dataset, device):
    with blocks_of(3, small_dataset):
        sweep.train(SMALL, tmp_path / "r", device, log=silent, stop=lambda: True)
        sliced = dataclasses.replace(SMALL, eval_batch_size=7)
        assert sweep.train(sliced, tmp_path / "r", device, log=silent)
    assert Recording(tmp_path / "r").finished


def table(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_command_reads_a_schedule(tmp_path, small, small_dataset, device, sketches):
    found = record(tmp_path / "r", small_dataset, device, records_per_doubling=2)
    at = f"--recording={tmp_path / 'r'}"
    analysis.analyze(found, tmp_path / "r" / "analysis", parts=("scores", "motion", "lineages", "contention"))
    rows = table(tmp_path / "r" / "analysis" / "curves.csv")
    accuracy = {int(r["iteration"]): float(r["mean"]) for r in rows if (r["metric"], r["group"]) == ("accuracy", "all")}
    assert list(accuracy) == found.iterations.tolist()
    expected = {t: float((small.predictions(t) == small.labels).mean()) for t in accuracy}
    assert accuracy == pytest.approx(expected)
    scores = table(tmp_path / "r" / "analysis" / "scores.csv")
    assert {round(3 * float(row["first_correct"]), 4) for row in scores} <= set(range(3 * 17 + 1))
    claims = {claim["name"]: claim for claim in json.loads((tmp_path / "r" / "analysis" / "claims.json").read_text())}
    assert claims["starts_at_chance"]["value"] == pytest.approx(expected[0])
    assert run("verify", at).returncode == 0
    done = run("animate", at, "--iterations=0:9:2", f"--output={tmp_path / 'film.mp4'}")
    assert done.returncode == 0 and "5 frames, iterations 0 to 8" in done.stdout, done
    done = run("animate", at, "--iterations=5", f"--output={tmp_path / 'five.png'}")
    assert done.returncode == 1 and "none of the 9 recorded iterations, which go from 0 to 16" in done.stderr
    done = run("analyze", at, "--cone_iteration=5")
    assert done.returncode == 1 and "must be from 0 to 16, and one of the 9 recorded" in done.stderr


def test_nearest_against_all_distances(rng):
    iterations = np.unique(rng.integers(0, 100, 12))
    for wanted in range(-3, 110):
        (found,) = nearest(iterations, np.array([wanted]))
        assert abs(found - wanted) == np.abs(iterations - wanted).min()
    assert nearest(np.array([7]), np.array([1, 9])).tolist() == [7]
