"""What a cluster of Dask's computes of a recording is what we compute of it."""

import re
import shutil
import sys

import numpy as np
import pytest

from train_dynamics.config import InputError
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.storage import StoredArray
from train_dynamics.study.results import compute

for name in ("xarray", "dask.array", "distributed"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processes beside this one, which share nothing with it but the disk."""
    import dask
    from distributed import Client, LocalCluster

    size = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        LocalCluster(**size, dashboard_address="127.0.0.1:0", host="127.0.0.1") as here,  # any port that is free
        Client(here) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def expected(small_once):
    return compute(Recording(small_once), groups=False)


def length(array):
    """L2 norm of a gradient at the one recorded layer."""
    return np.sqrt(np.square(array).sum(("in", "out")))


def test_a_cluster_computes_our_curves(small, expected, cluster):
    data = small.to_xarray(chunks={})
    gradient, mean = data["gradient.fc2"], data["gradient.fc2"].mean("example")
    lengths = length(gradient) * length(mean)
    found = {
        "accuracy": data.correct,
        "gradient_norm": length(gradient),
        "alignment": (gradient * mean).sum(("in", "out")) / lengths.where(lengths > 0, 1),  # no direction, no alignment
    }
    of_all = {name: values.mean("example") for name, values in found.items()}
    of_chunk = {name: values.groupby(data.example.copy(data=expected.chunk)).mean() for name, values in found.items()}
    assert all(of_all[name].chunks for name in found)
    of_all, of_chunk, loss = cluster.gather(cluster.compute([of_all, of_chunk, data.loss.mean("example")]))
    for name, curve in expected.curves.items():
        if name in found:
            np.testing.assert_allclose(of_all[name], curve[..., 0], rtol=1e-5, atol=1e-6, err_msg=name)
            by_chunk = of_chunk[name].transpose("seed", "iteration", ...)
            np.testing.assert_allclose(by_chunk, curve[..., 1:], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(loss, [[small.loss(t)[s].mean() for t in range(17)] for s in range(3)], rtol=1e-6)


def test_a_cluster_computes_our_scores(small, expected, cluster):
    data, scores = small.to_xarray(chunks={"iteration": 5}), expected.scores
    assert data.loss.chunks == ((3,), (5, 5, 5, 2), (50,))
    label = data.class_name == data.label_name
    error = data.probabilities.sel(iteration=scores.study.early) - label
    other = data.probabilities.where(~label).max("class_name")
    margin = -data.loss - np.log(np.maximum(other, np.finfo(np.float32).tiny))
    forgotten = (data.correct.astype(int).diff("iteration") < 0).sum("iteration")
    found = {
        "el2n": np.sqrt(np.square(error).sum("class_name")),
        "area_under_margin": margin.mean("iteration"),
        "forgetting_every_record": forgotten.where(data.correct.any("iteration"), 17),
        "cumulative_loss": data.loss.mean("iteration"),
    }
    for name, values in cluster.compute(found).result().items():
        np.testing.assert_allclose(values, scores.of_seeds[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore:Running on a single-machine scheduler")  # though there is a cluster
def test_a_task_reads_its_iterations_once(small, monkeypatch):
    import dask

    found, read = [], StoredArray._piece
    monkeypatch.setattr(StoredArray, "_piece", lambda self, file, k: found.append(k) or read(self, file, k))
    data = small.to_xarray(chunks={})
    assert data.loss.chunks == ((3,), (3, 3, 3, 3, 3, 2), (50,)) and not found
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(data.loss, small.to_xarray().loss)
    assert len(found) == 2 * 6
    found.clear()
    with dask.config.set(scheduler="synchronous"):
        data["gradient.fc2"].isel(iteration=4, example=2).compute()
    assert len(found) == 2  # the factors of one block


def test_blocks_are_divided_where_they_are_large(small, monkeypatch):
    from train_dynamics.recording import to_xarray as module

    monkeypatch.setattr(module, "MOST_BYTES", 3 * 50 * 50 * 4 * 2)  # two iterations of all gradients
    data = small.to_xarray(chunks={"example": 25})
    assert data["gradient.fc2"].chunks == ((3,), (2, 1) * 5 + (2,), (25, 25), (5,), (10,))
    assert data.loss.chunks == ((3,), (3, 3, 3, 3, 3, 2), (25, 25))
    np.testing.assert_array_equal(data["gradient.fc2"].sel(iteration=9), small.gradients("fc2", 9))


def test_a_cluster_finds_what_is_damaged(small_path, tmp_path, cluster):
    shutil.copytree(small_path, tmp_path / "recording")
    (file,) = (tmp_path / "recording" / "blocks" / "6" / "record.loss" / "c").rglob("0/0/0")
    content = bytearray(file.read_bytes())
    content[100] ^= 8
    file.write_bytes(content)
    data = Recording(tmp_path / "recording").to_xarray(chunks={})
    cluster.compute(data.loss.sel(iteration=5)).result()
    with pytest.raises(RecordingError, match=r"blocks/6/record.loss is damaged"):
        cluster.compute(data.loss.mean()).result()


def test_a_relative_path_means_the_same_elsewhere(small_path, cluster, monkeypatch):
    monkeypatch.chdir(small_path.parent)
    data = Recording(small_path.name).to_xarray(chunks={})
    assert cluster.compute(data.correct.mean()).result() == np.mean([data.correct])


def test_names_of_arrays_follow_the_recording(small, small_path, tmp_path):
    one, same = (Recording(small_path).to_xarray(chunks={}).loss for _ in range(2))
    shutil.copytree(small_path, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "blocks" / "15")
    cut = Recording(tmp_path / "cut").to_xarray(chunks={})
    assert one.data.name == same.data.name != cut.loss.data.name
    assert len({array.data.name for array in cut.data_vars.values()}) == len(cut.data_vars)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ({"time": 3}, r"^to_xarray\(chunks=...\): there is no dimension 'time'; there are: seed, iteration, example, "),
        (50, r"^to_xarray\(chunks=50\): must be lengths by dimension, as \{'iteration': 50\} or \{\}$"),
        ({"iteration": -3}, r"^to_xarray\(chunks=...\): "),
        ({"iteration": (3, 3)}, r"^to_xarray\(chunks=...\): "),
        ({"iteration": "x"}, r"^to_xarray\(chunks=...\): "),
    ],
)
def test_chunks_that_cannot_be(small, chunks, message):
    with pytest.raises(InputError, match=message) as caught:
        small.to_xarray(chunks=chunks)
    assert "\n" not in str(caught.value)


def test_without_dask_a_line_says_so(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    message = re.escape(
        'to_xarray(chunks=...) needs the package dask, which is not installed: pip install "dask[array]"'
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        small.to_xarray(chunks={})
    assert small.to_xarray().loss.shape == (3, 17, 50)
