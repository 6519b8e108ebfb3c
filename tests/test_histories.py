"""Histories: what is stored of every example is what the blocks say, and reads by example as by iteration."""

import dataclasses
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.conftest import SMALL, contents, silent
from train_dynamics.config import InputError
from train_dynamics.dynamics.scores.margin import margin
from train_dynamics.recording import histories as reading
from train_dynamics.recording.format import RecordingError, sealed
from train_dynamics.recording.histories import Histories, measures_of
from train_dynamics.recording.locks import lock
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.report.analysis import analyze
from train_dynamics.study import histories as making
from train_dynamics.study.histories import make_histories, of_block, span_of
from train_dynamics.study.motion import frames
from train_dynamics.training import sweep


@pytest.fixture(autouse=True)
def spans_of_four(monkeypatch):
    monkeypatch.setattr(making, "MOST_RECORDS", 4)
    monkeypatch.setattr(making, "AT_ONCE", 2)  # blocks of three are divided, too


@pytest.fixture
def copy(small_path, tmp_path):
    shutil.copytree(small_path, tmp_path / "recording")
    return tmp_path / "recording"


def cut(path, *starts):
    """Make a recording unfinished: give what it loses, by block."""
    kept = path.parent / "blocks"
    for start in starts:
        shutil.move(path / "blocks" / str(start), kept / str(start))
    return kept


def expected(recording, t):
    """All measures at an iteration `[s, n]`, the slow way."""
    found = {"loss": recording.loss(t)}
    if recording.contents.classes:
        found["prediction"] = recording.predictions(t)
        others = recording.probabilities(t)
        others[:, np.arange(len(recording.labels)), recording.labels] = 0
        found["margin"] = margin(recording.loss(t), others.max(axis=-1))
    of_seeds = [next(frames(recording, int(seed), [t])) for seed in recording.seeds]
    for i, layer in enumerate(recording.layers):
        found[f"norm.{layer.replace('/', '.')}"] = np.stack([frame.norm[i] for frame in of_seeds])
        found[f"alignment.{layer.replace('/', '.')}"] = np.stack([frame.cosine[i] for frame in of_seeds])
    return found


def same(found, slow):
    """Of several layers and records at once, older versions of NumPy add up in another order: two roundings of 6e-8."""
    np.testing.assert_allclose(found, slow, rtol=1.2e-7, atol=1.2e-7)


def check(recording, histories):
    """Compare all that can be read with what the slow way gives."""
    slow = [expected(recording, t) for t in recording.iterations[: histories.num_records].tolist()]
    assert set(histories.measures) == set(slow[0])
    for measure in histories.measures:
        whole = np.stack([found[measure] for found in slow], axis=1)
        for s in range(len(recording.seeds)):
            found = histories.read(measure, s, 0, histories.num_records)
            same(found, whole[s])
            assert found.dtype == whole.dtype == (np.uint8 if measure == "prediction" else np.float32)
            some = [len(recording.labels) - 1, 0, 3, 3]
            same(histories.of_examples(measure, s, some), whole[s][:, some])
        for start, stop in ((0, 0), (0, 1), (1, 5), (histories.num_records - 1, histories.num_records)):
            same(histories.read(measure, 0, start, stop), whole[0, start:stop])
        same(histories.of_example(measure, 5), whole[:, :, 5])


def test_they_are_what_the_blocks_say(small, copy):
    said = []
    histories = make_histories(recording := Recording(copy), said.append)
    assert histories.measures == ("loss", "prediction", "margin", "norm.fc2", "alignment.fc2")
    assert (histories.num_records, histories.span, sum(said)) == (17, 4, 17)
    assert {path.name for path in (copy / "histories").iterdir()} == {
        *("0-4", "4-8", "8-12", "12-16", "16-17"),
        "histories.json",
    }
    check(recording, histories)
    before = contents(copy / "histories")
    said.clear()
    make_histories(recording, said.append)
    assert said == [17] and contents(copy / "histories") == before
    for block in recording.blocks():
        for measure, values in of_block(recording, block).items():
            some = of_block(recording, block, [1])[measure]
            np.testing.assert_array_equal(some, values[:, 1:2])
            np.testing.assert_array_equal(values[2, 1], expected(small, int(block.iterations[1]))[measure][2])


def test_the_history_of_an_example(copy):
    recording = Recording(copy)
    with pytest.raises(InputError, match=r"histories is not there: .*analyze --recording=.* makes it"):
        recording.history(7)
    make_histories(recording)
    found = recording.history(7)
    assert found.iterations.tolist() == [*range(17)]
    assert found.loss.shape == found.margin.shape == found.norm["fc2"].shape == (3, 17)
    for t in range(17):
        slow = {measure: values[:, 7] for measure, values in expected(recording, t).items()}
        np.testing.assert_array_equal(found.loss[:, t], slow["loss"])
        np.testing.assert_array_equal(found.prediction[:, t], slow["prediction"])
        np.testing.assert_array_equal(found.correct[:, t], recording.correct(t)[:, 7])
        np.testing.assert_array_equal(found.margin[:, t], slow["margin"])
        np.testing.assert_array_equal(found.norm["fc2"][:, t], slow["norm.fc2"])
        np.testing.assert_array_equal(found.alignment["fc2"][:, t], slow["alignment.fc2"])
    # The label leads where it is predicted; nearly equal logits are rounded.
    sure = np.abs(found.margin) > 1e-5
    np.testing.assert_array_equal((found.margin > 0)[sure], found.correct[sure])
    for example in (-1, 50):
        with pytest.raises(IndexError, match="is not among the 50"):
            recording.history(example)


def test_what_is_not_there_is_told(copy):
    histories = make_histories(Recording(copy))
    with pytest.raises(KeyError, match=r"no measure 'norm.fc1'; there are: loss, prediction"):
        histories.read("norm.fc1", 0, 0, 1)
    for start, stop in ((0, 18), (-1, 1), (3, 2)):
        with pytest.raises(IndexError, match="are not among the first 17"):
            histories.read("loss", 0, start, stop)
    with pytest.raises(IndexError, match="not among the 50"):
        histories.of_examples("loss", 0, [50])


def test_an_unfinished_recording_has_whole_spans_and_grows(copy):
    kept = cut(copy, 9, 12, 15)  # nine records are left
    recording, said = Recording(copy), []
    histories = make_histories(recording, said.append)
    assert (histories.num_records, sum(said)) == (8, 8)
    check(recording, histories)
    assert recording.history(0).iterations.tolist() == [*range(8)]
    for start in (9, 12, 15):
        shutil.move(kept / str(start), copy / "blocks" / str(start))
    recording = Recording(copy)
    with pytest.raises(InputError, match=r"are of 8 records and not yet of all 17: .*analyze"):
        recording.history(0)
    early = contents(copy / "histories")
    check(recording, make_histories(recording))
    assert early.items() <= contents(copy / "histories").items()
    assert recording.history(0).loss.shape == (3, 17)
    assert histories.num_records == 8  # until opened anew
    histories.read("loss", 0, 0, 8)


def test_one_that_was_interrupted_is_gone_on_with(copy, monkeypatch):
    recording, written = Recording(copy), []
    write = making.write_array

    def interrupted(path, *arguments, **options):
        written.append(path)
        if len(written) == 27:  # of the second span; each has 21 arrays
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(making, "write_array", interrupted)
        make_histories(recording)
    assert {path.name for path in (copy / "histories").iterdir()} == {"0-4", "histories.json"}
    (copy / "histories" / "4-8.incomplete" / "0").mkdir(parents=True)  # of a run that was killed
    assert Histories(recording).num_records == 4
    check(recording, make_histories(recording))
    assert not list((copy / "histories").glob("*.incomplete"))


def test_two_do_not_make_them_at_once(copy):
    recording = Recording(copy)
    (copy / "histories").mkdir()
    fd = lock(copy / "histories")
    with pytest.raises(InputError, match="is being made by another process; wait for it"):
        make_histories(recording)
    os.close(fd)
    fd = lock(copy)  # as a run that trains
    assert make_histories(recording).num_records == 17
    os.close(fd)


def test_what_is_damaged_is_told_and_made_again(copy):
    recording = Recording(copy)
    histories = make_histories(recording)
    file = copy / "histories" / "4-8" / "1" / "loss" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    for read in (lambda: histories.read("loss", 1, 3, 5), lambda: recording.history(0)):
        with pytest.raises(RecordingError, match=r"piece 0 was changed .*; move it elsewhere, and .*analyze makes it"):
            read()
    shutil.rmtree(copy / "histories" / "4-8")
    assert Histories(recording).num_records == 4
    check(recording, make_histories(recording))
    shutil.move(copy / "histories" / "4-8", copy / "histories" / "other")
    shutil.copytree(copy / "histories" / "8-12", copy / "histories" / "4-8")
    with pytest.raises(RecordingError, match="is that of another array"):
        Histories(recording).read("loss", 0, 4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recording": "00000000"}, "it belongs to another recording"),
        ({"format": 2}, "it has format 2, and this version reads format 1"),
        ({"measures": ["loss"]}, "it has other measures than this version makes"),
        ({"span": 0}, "its span is not a length"),
        ({"checksum": "00000000"}, "its checksum differs"),
        (None, "histories.json is malformed"),
    ],
)
def test_those_of_another_are_refused(copy, change, message):
    recording = Recording(copy)
    make_histories(recording)
    file = copy / "histories" / "histories.json"
    header = json.loads(file.read_text())
    header = {} if change is None else {**sealed({**header, **change}), **change}
    file.write_text(json.dumps(header))
    for call in (lambda: Histories(recording), lambda: recording.history(0), lambda: make_histories(recording)):
        with pytest.raises(RecordingError, match=f"{message}.*move it elsewhere"):
            call()


def test_in_another_directory(copy, tmp_path):
    recording, before = Recording(copy), contents(copy)
    check(recording, make_histories(recording, path=tmp_path / "elsewhere"))
    check(recording, Histories(recording, tmp_path / "elsewhere"))
    assert contents(copy) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="could not be written: Not a directory"):
        make_histories(recording, path=tmp_path / "file")


def test_an_analysis_makes_them(copy, tmp_path, blanks):
    said = []
    (copy / "histories").write_text("mine")
    analyze(Recording(copy), tmp_path / "out", parts=["histories"], log=said.append)
    assert said[-1] == f"Left out: histories: {copy / 'histories'} could not be written: File exists"
    (copy / "histories").unlink()
    analyze(Recording(copy), tmp_path / "out", parts=[], log=said.append)
    assert not (copy / "histories").exists()
    said.clear()
    analyze(Recording(copy), tmp_path / "out", parts=["histories"], log=said.append)
    assert not any("Left out" in line for line in said)
    assert Recording(copy).history(3).loss.shape == (3, 17)
    assert verify(Recording(copy), samples=2).problems == []


def test_they_move_with_the_recording(copy, tmp_path):
    make_histories(Recording(copy))
    shutil.move(copy, tmp_path / "moved")
    recording = Recording(tmp_path / "moved")
    check(recording, Histories(recording))


def test_of_a_classifier_whose_layers_are_measured(tmp_path):
    import jax
    import jax.numpy as jnp

    import train_dynamics as td

    def loss(params, example):
        logits = example[0] @ params["head"]["kernel"]
        return -jax.nn.log_softmax(logits)[example[1]], logits

    rng = np.random.default_rng(0)
    examples = rng.normal(size=(70, 5)).astype(np.float32), np.arange(70) % 3
    kernel = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    with td.Recorder(tmp_path / "out", loss, examples, gradient_layout="measures", log=silent) as recorder:
        for t in range(6):
            recorder.record(t, {"head": {"kernel": kernel / (t + 1)}})
    recording = Recording(tmp_path / "out")
    assert not recording.gradient_layers
    check(recording, make_histories(recording))
    assert Histories(recording).num_records == 6


def test_threads_read_at_once(copy):
    histories = make_histories(Recording(copy))
    slow = [histories.of_example("loss", n) for n in range(50)]
    with ThreadPoolExecutor(8) as threads:
        for n, found in enumerate(threads.map(lambda n: histories.of_example("loss", n), range(50))):
            np.testing.assert_array_equal(found, slow[n])


def test_of_a_regression_in_all_layouts_read_as_one(tmp_path, monkeypatch):
    """Two loops at uneven iterations, with blocks that end elsewhere, one of which has histories of other spans."""
    import jax
    import jax.numpy as jnp

    import train_dynamics as td
    from train_dynamics.training import recorder as module

    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    params = {name: {"kernel": jnp.asarray(rng.normal(size=(5, 5)), jnp.float32)} for name in "abc"}
    params |= {"d": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)}}

    def loss(params, example):
        x = example[0]
        for name in "abc":
            x = jnp.tanh(x @ params[name]["kernel"])
        out = x @ params["d"]["kernel"] + params["d"]["bias"]
        return jnp.square(out - example[1]).sum(), out

    def record(seed, iterations, **more):
        layout = "a/*:measures,b/*:sketch,c/*:dense,d/*:factored"
        options = {"gradient_layout": layout, "sketch_size": 20, "log": silent, **more}
        with td.Recorder(tmp_path / str(seed), loss, (inputs, targets), seed=seed, **options) as recorder:
            for t in iterations:
                recorder.record(t, jax.tree.map(lambda leaf, of=(seed + t) / 100: leaf + of, params))

    for seed, length in ((3, 3), (8, 2)):
        monkeypatch.setattr(module, "BLOCK_RECORDS", length)
        record(seed, (0, 1, 5, 6, 7, 11))
    make_histories(Recording(tmp_path / "3"))
    monkeypatch.setattr(making, "MOST_RECORDS", 2)
    recording = Recording([tmp_path / "3", tmp_path / "8"])
    with pytest.raises(RecordingError, match="8/histories is not there"):
        Histories(recording)
    histories = make_histories(recording)
    assert "prediction" not in histories.measures and "norm.d.kernel" in histories.measures
    assert (histories.num_records, histories.span) == (6, 2)
    check(recording, histories)
    history = recording.history(2)
    assert history.prediction is history.correct is history.margin is None
    assert set(history.alignment) == set(recording.layers) and history.norm["a/kernel"].shape == (2, 6)

    # A loop that is gone on with replaces its last span, which was short.
    record(3, (12, 13, 14), resume=True)
    alone = Recording(tmp_path / "3")
    with pytest.raises(InputError, match="are of 6 records and not yet of all 9"):
        alone.history(0)
    check(alone, make_histories(alone))
    assert sorted(path.name for path in (tmp_path / "3" / "histories").glob("*-*")) == ["0-4", "4-8", "8-9"]


def test_spans():
    assert span_of(1, 1, 1) == 4  # as patched above
    assert span_of(10**9, 1, 1) == 1
    assert span_of(2**20, 1, 1) == 2  # a file of 8 MiB
    assert span_of(2**20, 10, 13) == 1  # 520 MiB a record


def test_few_descriptions_are_kept(copy, monkeypatch):
    monkeypatch.setattr(reading, "DESCRIPTIONS_BYTES", 0)
    recording = Recording(copy)
    histories = make_histories(recording)
    for measure in measures_of(recording.contents):
        histories.of_example(measure, 0)
    assert histories._parts[0]._array.cache_info().currsize == 16


NETWORK = """
from flax import linen as nn
cnn = nn.Sequential([nn.Conv(2, (3, 3), strides=9), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(10)])
"""


@pytest.mark.parametrize("config", [{}, {"gradient_layout": "dense"}, {"layers": ("fc1", "fc2")}, {"model": "cnn"}])
def test_the_gradients_of_one_example_are_those_read_at_each_record(tmp_path, device, config, monkeypatch):
    """With and without histories, whose checksums are of seven examples here."""
    monkeypatch.setattr(reading, "GROUP", 7)
    monkeypatch.setattr(making, "GROUP", 7)
    if "model" in config:  # a layer with several positions, whose factors are not what two examples are compared by
        (tmp_path / "nets.py").write_text(NETWORK)
        config = {"model": f"{tmp_path}/nets.py:cnn", "layers": ("all",), "gradient_layout": "factored"}
    sweep.train(dataclasses.replace(SMALL, epochs=1, **config), tmp_path / "r", device, log=silent)
    recording = Recording(tmp_path / "r")
    for _ in range(2):
        for layer in recording.layers:
            for n in (0, 20, 49):
                expected = np.stack([recording.gradients(layer, t)[:, n] for t in recording.iterations], axis=1)
                np.testing.assert_array_equal(recording.gradients_of(n, layer), expected)
        make_histories(recording)
        recording = Recording(tmp_path / "r")
    assert any(name.startswith(("cotangent", "gradient")) for name in Histories(recording).checked)
    with pytest.raises(IndexError):
        recording.gradients_of(50, recording.layers[0])
    with pytest.raises(KeyError):
        recording.gradients_of(0, "fc9")


def test_a_flipped_bit_of_one_example_is_found_in_its_gradients(copy, monkeypatch):
    monkeypatch.setattr(reading, "GROUP", 7)
    monkeypatch.setattr(making, "GROUP", 7)
    make_histories(Recording(copy))
    (file,) = (copy / "blocks" / "3" / "record.cotangent.fc2" / "c").rglob("0/0/0/0")
    content = bytearray(file.read_bytes())
    bit = (1 * 50 + 20) * 40 + 3  # the sign of a number of example 20 at the second iteration
    content[bit] ^= 128
    file.write_bytes(content)
    recording = Recording(copy)
    with pytest.raises(
        RecordingError, match=r"blocks/3 is damaged: cotangent.fc2 of examples 14 to 20 at iteration 4 was"
    ):
        recording.gradients_of(20, "fc2")
    assert recording.gradients_of(0, "fc2").shape == (3, 17, 5, 10)  # which is not read from there
