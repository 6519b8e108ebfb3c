"""What leaves a recording and an analysis for other programs: xarray, tables, TensorBoard, wandb, trackio, cleanlab."""

import dataclasses
import importlib.machinery
import json
import pickle
import re
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL, silent, sketching
from train_dynamics.config import InputError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.storage import StoredArray
from train_dynamics.report import analysis
from train_dynamics.report.export import export
from train_dynamics.study import results
from train_dynamics.training import sweep

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def xarray():
    return pytest.importorskip("xarray", reason="xarray is not installed")


@pytest.fixture
def pieces(monkeypatch):
    """Which pieces of which arrays are read from disk."""
    found, read = [], StoredArray._piece

    def noted(self, fd, k):
        found.append((self._path.name.removeprefix("record."), k))
        return read(self, fd, k)

    monkeypatch.setattr(StoredArray, "_piece", noted)
    return found


# xarray.


def test_xarray_has_what_the_recording_has(small, xarray):
    data = small.to_xarray()
    of_example = ("seed", "iteration", "example")
    assert data["gradient.fc2"].dims == (*of_example, "in", "out")
    assert data["parameters.fc2.bias"].dims == ("seed", "iteration", "out")
    assert data["parameters.fc1.kernel"].dims == ("seed", "iteration", "fc1_in", "fc1_out")
    np.testing.assert_array_equal(data.seed, [0, 1, 2])
    np.testing.assert_array_equal(data.iteration, small.iterations)
    np.testing.assert_array_equal(data.example, small.ids)
    assert data.label_name.sel(example=small.ids[7]) == str(small.labels[7])
    expected = {
        "loss": small.loss,
        "prediction": small.predictions,
        "correct": small.correct,
        "probabilities": small.probabilities,
        "gradient.fc2": lambda t: small.gradients("fc2", t),
        "parameters.fc1.kernel": lambda t: small.parameters(t)["fc1"]["kernel"],
    }
    for name, read in expected.items():
        whole = np.stack([read(t) for t in range(17)], axis=1)
        assert data[name].dtype == whole.dtype, name
        np.testing.assert_array_equal(data[name], whole, err_msg=name)
        some = data[name].isel(iteration=[9, 1, 9, -1], seed=[2, 0])
        np.testing.assert_array_equal(some, whole[[2, 0]][:, [9, 1, 9, -1]], err_msg=name)
        np.testing.assert_array_equal(data[name][1, -1, -2], whole[1, -1, -2], err_msg=name)
        np.testing.assert_array_equal(data[name][..., 1, ::3, ::-1], whole[..., 1, ::3, ::-1], err_msg=name)
    assert data.loss[:, :0].values.shape == (3, 0, 50)
    several = data.loss.sel(seed=xarray.DataArray([0, 2], dims="k"), iteration=xarray.DataArray([4, 5], dims="k"))
    np.testing.assert_array_equal(several, [small.loss(4)[0], small.loss(5)[2]])
    one = pickle.loads(pickle.dumps(data))["gradient.fc2"].sel(seed=1, iteration=5).isel(example=42)
    np.testing.assert_array_equal(one, small.gradients("fc2", 5)[1, 42])


def test_xarray_reads_what_is_asked_for(small, xarray, pieces):
    data = small.to_xarray()
    repr(data)
    assert not pieces
    data["gradient.fc2"].sel(seed=1, iteration=5).isel(example=42).load()
    assert pieces == [("activation.fc2", 0), ("cotangent.fc2", 0)]  # of the second block, 3 to 5, whose piece is whole
    pieces.clear()
    data.loss.mean("example").load()
    assert pieces == 6 * [("loss", 0)]


def test_xarray_of_an_unfinished_recording(small_path, tmp_path, xarray):
    shutil.copytree(small_path, tmp_path / "cut")
    for start in (15, 12, 9):
        shutil.rmtree(tmp_path / "cut" / "blocks" / str(start))
    data = Recording(tmp_path / "cut").to_xarray()
    assert data.sizes["iteration"] == 9 and data.finished == 0
    np.testing.assert_array_equal(data.loss.sel(iteration=8), Recording(small_path).loss(8))
    shutil.rmtree(tmp_path / "cut" / "blocks")
    with pytest.raises(InputError, match="holds no record yet"):
        Recording(tmp_path / "cut").to_xarray()


def test_xarray_of_loops_read_as_one(tmp_path, monkeypatch, xarray):
    """Of a regression, whose layers are kept in all ways, at uneven iterations, with blocks that end elsewhere."""
    import jax
    import jax.numpy as jnp

    import train_dynamics as td
    from train_dynamics.training import recorder as module

    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    params = {name: {"kernel": jnp.asarray(rng.normal(size=(5, 5)), jnp.float32)} for name in "abc"}
    params |= {"d": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)}, "e": jnp.ones((2, 3, 5))}

    def loss(params, example):
        x = example[0] + params["e"].sum((0, 1))
        for name in "abc":
            x = jnp.tanh(x @ params[name]["kernel"])
        out = x @ params["d"]["kernel"] + params["d"]["bias"]
        return jnp.square(out - example[1]).sum(), out

    layout = "a/*:measures,b/*:sketch,c/*:dense,d/*:factored,e:dense"
    for seed, length in ((3, 3), (8, 2)):
        monkeypatch.setattr(module, "BLOCK_RECORDS", length)
        options = {"ids": ["x"] * 7, "gradient_layout": layout, "sketch_size": 20, "log": silent}
        with td.Recorder(tmp_path / str(seed), loss, (inputs, targets), seed=seed, **options) as recorder:
            for t in (0, 1, 5, 11):
                recorder.record(t, jax.tree.map(lambda leaf, of=(seed + t) / 100: leaf + of, params))
    recording = Recording([tmp_path / "3", tmp_path / "8"])
    data = recording.to_xarray()
    of_example = ("seed", "iteration", "example")
    assert data.seed.values.tolist() == [3, 8] and data.iteration.values.tolist() == [0, 1, 5, 11]
    assert data.example.values.tolist() == [*range(7)] and set(data.id.values) == {"x"}  # ids are not unique
    assert data.label.dims == ("example", "target_0") and "correct" not in data
    assert data["gradient.c.kernel"].dims == (
        *of_example,
        "c_in",
        "c_out",
    )
    for t in recording.iterations:
        at = data.sel(iteration=t, seed=[8]).isel(example=[4, 2])
        np.testing.assert_array_equal(at.outputs, recording.outputs(t)[1:, [4, 2]])
        for layer in ("c/kernel", "d/kernel", "d/bias", "e"):
            found = at[f"gradient.{recording.kept(layer).key}"]
            np.testing.assert_array_equal(found, recording.gradients(layer, t)[1:, [4, 2]], err_msg=layer)
        np.testing.assert_array_equal(at["norm.a.kernel"], recording.measures("a/kernel", t)[0][1:, [4, 2]])
        np.testing.assert_array_equal(at["sketch.b.kernel"], recording.vectors("b/kernel", t)[0][1:, [4, 2]])


def test_without_xarray_a_line_says_so(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(InputError, match=r"^to_xarray\(\) needs the package xarray, .*: pip install xarray$"):
        small.to_xarray()


# cleanlab.


def test_cleanlab_is_given_what_it_takes(small):
    labels, pred_probs = small.cleanlab(16)
    assert pred_probs.shape == (50, 10) and pred_probs.dtype == np.float64
    np.testing.assert_allclose(pred_probs, small.probabilities(16).mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pred_probs.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(labels, small.labels)


def test_cleanlab_takes_it(small):
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    given = small.cleanlab(16)
    issues = filters.find_label_issues(**given._asdict(), n_jobs=1)
    assert issues.shape == (50,) and issues.dtype == bool
    # All in order, but for one label.
    sure = given._replace(pred_probs=np.eye(10)[given.labels] * 0.89 + 0.011)
    wrong = given.labels.copy()
    wrong[3] = (wrong[3] + 1) % 10
    assert np.flatnonzero(filters.find_label_issues(wrong, sure.pred_probs, n_jobs=1)).tolist() == [3]


def test_cleanlab_is_given_what_unseen_examples_are_taken_for(small, tmp_path, device, small_dataset):
    with pytest.raises(InputError, match="50 examples of 50 were held out of no seed; train with --holdout_folds=5"):
        small.cleanlab(16, held_out=True)
    config = dataclasses.replace(SMALL, epochs=1, holdout_folds=3)  # of three seeds
    sweep.train(config, tmp_path / "out", device, log=silent, dataset=small_dataset)
    recording = Recording(tmp_path / "out")
    t, held_out = int(recording.iterations[-1]), recording.held_out
    assert (held_out.sum(axis=0) >= 1).all() and (held_out.sum(axis=1) == 17).all()
    expected = [recording.probabilities(t)[held_out[:, n], n].mean(axis=0) for n in range(50)]
    np.testing.assert_allclose(recording.cleanlab(t, held_out=True).pred_probs, expected, rtol=1e-5, atol=1e-7)


# Tables.


@pytest.fixture(scope="module")
def whole(small_once, tmp_path_factory):
    """An analysis with its events for TensorBoard, if that can be written."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    output = tmp_path_factory.mktemp("exports") / "analysis"
    with sketching(blank=True):
        analysis.analyze(Recording(small_once), output, parts=(), log=silent, export=["tensorboard"])
    return output


def test_pandas_opens_the_scores(small, whole):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    found = pandas.read_parquet(whole / "scores.parquet")
    assert found["id"].tolist() == small.ids.tolist() and found["agr"].dtype == float and found["el2n"].isna().all()


def test_polars_opens_the_scores(small, whole):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    found = polars.read_parquet(whole / "scores.parquet")
    assert found["id"].to_list() == small.ids.tolist() and found["agr"].dtype == polars.Float64
    assert found["el2n"].null_count() == 50


def test_duckdb_opens_the_scores(small, whole):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    query = f"select id, agr, el2n from '{whole / 'scores.parquet'}' order by example"
    found = duckdb.connect().execute(query).fetchall()
    assert [row[0] for row in found] == small.ids.tolist()
    assert {type(row[1]) for row in found} == {float} and {row[2] for row in found} == {None}


# Trackers.


def curves(output):
    """All means in the table of curves, by name and iteration."""
    lines = [line.split(",") for line in (output / "curves.csv").read_text().splitlines()[1:]]
    return {(f"{metric}/{group}", int(t)): float(mean) for metric, group, t, mean, _ in lines}


def check_curves(small, output, found):
    """Whether curves by name and iteration are those of the table, and the loss beside."""
    expected = curves(output)
    assert {key for key in found if not key[0].startswith("loss/")} == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    table = np.genfromtxt(output / "scores.csv", delimiter=",", names=True)
    chunk = table["chunk"] == 3
    for t in (0, 16):
        assert found["loss/all", t] == pytest.approx(small.loss(t).mean(), rel=1e-5)
        assert found["loss/chunk_3", t] == pytest.approx(small.loss(t)[:, chunk].mean(), rel=1e-5)


def test_tensorboard_reads_it_back(small, whole):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (whole / "tensorboard").iterdir()
    content, values = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        values += [(value, event.step) for value in event.summary.value]
        content = content[16 + length :]
    scalars = {(value.tag, t): value.simple_value for value, t in values if value.HasField("simple_value")}
    check_curves(small, whole, scalars)
    images = {value.tag: value.image for value, _ in values if value.HasField("image")}
    pictures = {path.stem: path for path in (whole / "figures").glob("*.png")}
    assert set(images) == {f"figures/{name}" for name in pictures}
    for name, path in pictures.items():
        assert images[f"figures/{name}"].encoded_image_string == path.read_bytes()
        assert images[f"figures/{name}"].width == 20
    (text,) = (value for value, _ in values if value.HasField("tensor"))
    lines = text.tensor.string_val[0].decode().splitlines()
    assert text.tag == "tables/scores/text_summary" and len(lines) == 52
    assert lines[2].startswith(f"| 0 | {small.ids[0]} | {small.labels[0]} | ")


def test_a_later_analysis_takes_our_events_away_and_no_others(small_path, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "tensorboard" / "events.out.tfevents.1.mine").write_text("mine")
    with sketching(blank=True):
        analysis.analyze(Recording(small_path), tmp_path / "out", parts=(), log=silent)
    assert [path.name for path in (tmp_path / "out" / "tensorboard").iterdir()] == ["events.out.tfevents.1.mine"]


@pytest.fixture
def found(small):
    return results.compute(small, options=None, groups=False)


@pytest.fixture
def tracker(monkeypatch):
    """A module with the functions of Trackio that are used, with the arguments that Trackio 0.43 has; notes calls."""
    calls = []

    def init(project: str, name: str | None = None, config: dict | None = None):
        calls.append(("init", project, name, config))

    def log(metrics: dict, step: int | None = None):
        calls.append(("log", metrics, step))

    class Image:
        def __init__(self, value: str, caption: str | None = None):
            self.value = value

    class Table:
        def __init__(self, columns: list | None = None, data: list | None = None):
            self.columns, self.data = columns, data

    fake = types.ModuleType("trackio")
    fake.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    fake.__dict__.update(init=init, log=log, Image=Image, Table=Table, finish=lambda: calls.append(("finish",)))
    fake.calls = calls
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


def test_trackio_is_told(small, found, whole, tracker):
    """By a stand-in: Trackio asks for an older Pillow than the other packages have."""
    files = json.loads((whole / "analysis.json").read_text())["files"]
    export(small, found, whole, files, ["trackio"])
    (first, *calls, last) = tracker.calls
    assert first == ("init", "train_dynamics", "recording", small.config.to_dict()) and last == ("finish",)
    steps = [step for _, _, step in calls]
    assert steps == sorted(steps)
    logged = {(name, t): value for _, values, t in calls for name, value in values.items()}
    check_curves(small, whole, {key: value for key, value in logged.items() if isinstance(value, float)})
    assert logged["figures/accuracy", 16].value == str(whole / "figures" / "accuracy.png")
    table = logged["tables/scores", 16]
    assert table.columns[:4] == ["example", "id", "label", "agr"] and len(table.data) == 50
    assert table.data[0][:3] == [0, small.ids[0], small.labels[0]] and table.data[0][-1] is None
    assert not any(name.startswith("tables/curves") for name, _ in logged)


def test_a_run_that_cannot_begin_is_one_line(small, found, whole, tracker):
    def init(**_):
        raise RuntimeError("nobody is logged in\nand more")

    tracker.init = init
    with pytest.raises(InputError, match=r"^--export=trackio: the analysis is complete in .*: nobody is logged in$"):
        export(small, found, whole, [], ["trackio"])


def test_wandb_writes_offline(small, found, whole, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    settings = {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONFIG_DIR": str(tmp_path / "config")}
    settings |= {"CACHE_DIR": str(tmp_path / "cache"), "DATA_DIR": str(tmp_path / "data"), "DISABLE_GIT": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    export(small, found, whole, ["figures/accuracy.png", "scores.csv"], ["wandb"])
    (run_path,) = (tmp_path / "wandb").glob("offline-run-*")
    (history,) = run_path.glob("run-*.wandb")
    assert b"accuracy/chunk_9" in history.read_bytes()
    (picture,) = run_path.glob("files/media/images/figures/accuracy_*.png")
    assert picture.read_bytes() == (whole / "figures" / "accuracy.png").read_bytes()
    (table,) = run_path.glob("files/media/table/tables/scores_*.table.json")
    assert json.loads(table.read_text())["data"][0][:2] == [0, int(small.ids[0])]


def test_what_cannot_be_exported_is_told_first(small_path, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "compute", lambda *_: pytest.fail("it computes"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    for targets, message in {
        ("wandb",): "--export=wandb: needs the package wandb, which is not installed: pip install wandb",
        ("tensorbord",): "--export=tensorbord: must be one or more of tensorboard,wandb,trackio, or empty",
    }.items():
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            analysis.analyze(Recording(small_path), tmp_path / "out", export=targets)
    assert not (tmp_path / "out").exists()


def test_the_programs_of_the_page_run(small_path, whole, tmp_path, monkeypatch):
    section = (DOCS / "READING.md").read_text().partition("## Out of the recording")[2].partition("\n## ")[0]
    programs = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(programs) == 4
    for module in ("xarray", "dask.array", "pandas", "cleanlab"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    (tmp_path / "recordings").mkdir()
    shutil.copytree(small_path, tmp_path / "recordings" / "mini_mnist")
    shutil.copytree(whole, tmp_path / "recordings" / "mini_mnist" / "analysis")
    monkeypatch.chdir(tmp_path)
    for program in programs:
        program = re.sub(r"\b(t|iteration)=\d+", r"\1=8", program)
        program = program.replace("_asdict()", "_asdict(), n_jobs=1")  # no forks of a process that has started JAX
        exec(compile(program, "READING.md", "exec"), {})
