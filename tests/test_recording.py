import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.conftest import SMALL, blocks_of, contents, silent
from train_dynamics.config import FIELDS, InputError
from train_dynamics.gradients import per_example
from train_dynamics.recording import locks, storage, writer
from train_dynamics.recording.format import RecordingError, checksum_of, save_arrays, sealed, written_whole
from train_dynamics.recording.reader import Block, Recording
from train_dynamics.recording.writer import Writer
from train_dynamics.study import results
from train_dynamics.task.mlp import MLP
from train_dynamics.training import sweep


def host(parameters, seed):
    return jax.tree.map(lambda array: array[seed], parameters)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "found"
    (tmp_path / "found.incomplete").write_text("of a run that was killed")
    for before, now in ((None, "one"), ("one", "two")):
        with pytest.raises(error), written_whole(path) as new:
            new.write_text("half")
            raise error
        assert [found.read_text() for found in tmp_path.iterdir()] == ([before] if before else [])
        with written_whole(path) as new:
            new.write_text(now)
        assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("found", now)]


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
    path, files = tmp_path / "found", {"images": b"images", "labels": b"labels"}
    with pytest.raises(TypeError), written_whole(path) as new:
        save_arrays(new, {"left": b"", "broken": 0})
    assert not path.exists()
    with written_whole(path) as new:
        save_arrays(new, files)
    assert {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*.npy")} == {
        "found/images.npy": b"images",
        "found/labels.npy": b"labels",
    }


def test_nothing_of_the_user_s_is_removed(tmp_path):
    (tmp_path / "film.mp4.incomplete").mkdir()
    (tmp_path / "film.mp4.incomplete" / "notes").write_text("mine")
    with pytest.raises(IsADirectoryError), written_whole(tmp_path / "film.mp4") as new:
        new.write_text("a film")
    assert (tmp_path / "film.mp4.incomplete" / "notes").read_text() == "mine"


def test_it_is_complete(small):
    assert small.num_iterations == 16
    assert small.num_records == 17
    assert small.finished
    assert small.seeds.tolist() == [0, 1, 2]
    assert [t for block in small.blocks() for t in block.iterations] == list(range(17))
    for t in range(17):
        assert small.loss(t).shape == small.predictions(t).shape == (3, 50)
        assert small.gradients("fc2", t).shape == (3, 50, 5, 10)
        assert small.parameters(t)["fc1"]["kernel"].shape == (3, 784, 5)
    for block in small.blocks():
        assert block.read("loss").shape == (3, len(block.iterations), 50)
        np.testing.assert_array_equal(block.read("loss")[:, -1], small.loss(block.iterations[-1]))


def test_it_knows_its_data_and_configuration(small, small_dataset):
    assert small.config == SMALL
    np.testing.assert_array_equal(small.images, small_dataset.images)
    np.testing.assert_array_equal(small.labels, small_dataset.labels)
    np.testing.assert_array_equal(small.ids, small_dataset.ids)
    assert small.class_names == small_dataset.class_names
    header = json.loads((small.path / "config.json").read_text())
    assert {"train-dynamics", "python", "jax", "flax", "optax", "orbax-checkpoint"} <= set(header["versions"])


@pytest.mark.parametrize("t", [0, 7, 16])
def test_what_is_stored_is_what_the_stored_weights_give(small, t):
    images = small.inputs()
    for s in range(3):
        weights = host(small.parameters(t), s)
        for n in range(0, 50, 7):
            logits = oracles.forward(weights, images[n])[1]
            p = oracles.softmax(logits)
            gradient = oracles.backward(weights, images[n], small.labels[n])["fc2"]
            # Sums over 784 pixels in float32: by chance 28 roundings of 6e-8, and of the values below 5.
            np.testing.assert_allclose(small.gradients("fc2", t)[s, n], gradient, rtol=0, atol=1e-5)
            np.testing.assert_allclose(small.loss(t)[s, n], -np.log(p[small.labels[n]]), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(small.probabilities(t)[s, n], p, rtol=1e-5, atol=1e-9)
            assert small.predictions(t)[s, n] == logits.argmax()


def test_a_seed_starts_where_it_should_and_follows_its_batches(small):
    """Replay two updates of seed 2 in float64, from its own start and batch order."""
    from train_dynamics.training.steps import batch_indices

    expected = MLP(SMALL.hidden_sizes, 10).init(jax.random.key(2), jnp.asarray(small.inputs()[:1]))["params"]
    # Another program than that which recorded: two roundings of numbers below 1 by 3e-8.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=6e-8), host(small.parameters(0), 2), dict(expected)
    )
    for t, batch in enumerate(batch_indices(SMALL, 2, 50, 0, 4)):
        before, after = host(small.parameters(t), 2), host(small.parameters(t + 1), 2)
        batch = batch[batch >= 0]
        assert len(batch) == (2 if t == 3 else 16)
        mean = np.mean([oracles.backward(before, small.inputs()[n], small.labels[n])["fc2"] for n in batch], axis=0)
        # Weights below 1/2, which float32 rounds by 1.5e-8, and a hundredth of gradients that are right to 1e-6.
        np.testing.assert_allclose(after["fc2"]["kernel"], before["fc2"]["kernel"] - 0.01 * mean, rtol=0, atol=1e-7)


def test_probabilities_keep_the_label_where_it_is_unlikely(small, monkeypatch):
    logits = np.array([[[0.0, 30.0, -30.0], [0.0, 2.0, 1.0]]])  # label 0 with p = 9e-14, label 1 with p = 0.67
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    label = np.eye(3)[[0, 1]]
    stored = {"cotangent.fc2": (p - label).astype(np.float32), "loss": -np.log((p * label).sum(-1)).astype(np.float32)}
    monkeypatch.setattr(Block, "read", lambda self, name, t: stored[name])
    monkeypatch.setattr(Recording, "labels", np.array([0, 1]))
    np.testing.assert_allclose(small.probabilities(0), p, rtol=1e-5)  # e to the power of 30, which is right to 1e-6


@pytest.fixture(scope="module")
def deep(tmp_path_factory, device):
    """The same deeper study, recorded in both layouts."""
    config = dataclasses.replace(SMALL, hidden_sizes=(7, 6), layers=("fc1", "fc2", "fc3"), epochs=1)
    found = {}
    for layout in ("factored", "dense"):
        path = tmp_path_factory.mktemp("deep") / layout
        sweep.train(dataclasses.replace(config, gradient_layout=layout), path, device, log=silent)
        found[layout] = Recording(path)
    return found


@pytest.mark.parametrize("layer", ["fc1", "fc2", "fc3"])
def test_layouts_agree_with_each_other_and_the_definition(deep, layer):
    for t in (0, 3):
        factored, dense = (deep[layout].gradients(layer, t) for layout in ("factored", "dense"))
        rounding = 2e-5 * np.abs(dense).max()  # as in test_gradients.py, of sums over 784 pixels
        np.testing.assert_allclose(factored, dense, rtol=0, atol=rounding)
        for s in range(3):
            expected = per_example.kernel_gradients(
                MLP((7, 6), 10),
                jax.tree.map(jnp.asarray, host(deep["dense"].parameters(t), s)),
                jnp.asarray(deep["dense"].inputs()),
                jnp.asarray(deep["dense"].labels),
                (layer,),
            )[layer]
            np.testing.assert_allclose(dense[s], expected, rtol=0, atol=rounding)


def test_probabilities_come_out_of_either_layout(deep):
    one, other = (deep[layout].probabilities(2) for layout in ("factored", "dense"))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)  # float32; near 0, a rounding of the largest
    np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-6)  # ten roundings of 6e-8


def test_the_images_are_not_stored_again_as_activations(deep):
    block = next(deep["factored"].blocks())
    assert block.read("cotangent.fc1").shape[-1] == 7
    assert block.read("activation.fc2").shape[-1] == 7
    with pytest.raises(KeyError, match=r"there is no array 'activation.fc1'; there are: loss, prediction, parameters"):
        block.read("activation.fc1")
    with pytest.raises(KeyError, match=r"there is no array '\.\./config\.json'"):
        list(block.each("../config.json"))


def test_it_opens_without_jax(small_path):
    program = (
        "import sys; from train_dynamics.recording.reader import Recording;"
        f"r = Recording({str(small_path)!r});"
        "print(r.gradients('fc2', 3).any(), r.parameters(3)['fc1']['bias'].shape);"
        "assert 'jax' not in sys.modules and 'orbax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True (3, 5)\n"


def test_what_was_not_recorded_is_refused(small):
    with pytest.raises(KeyError, match="'fc1' was not recorded; recorded: fc2"):
        small.gradients("fc1", 0)
    for t in (-1, 17):
        with pytest.raises(IndexError, match=f"iteration {t} is not among the 17 records"):
            small.loss(t)


def test_directories_that_are_no_recording_are_refused(small_path, tmp_path):
    with pytest.raises(RecordingError, match="is not a directory"):
        Recording(tmp_path / "missing")
    with pytest.raises(RecordingError, match=r"is not a recording: it has no config\.json"):
        Recording(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "another program"}')
    with pytest.raises(RecordingError, match="does not belong to a recording"):
        Recording(tmp_path)
    header = json.loads((small_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(RecordingError, match="has format 99, and this version reads formats 4, 5 and 6: use a newer"):
        Recording(tmp_path)


def test_a_recording_of_format_4_reads_as_before_and_goes_on(small, tmp_path, device, small_dataset, monkeypatch):
    """What earlier versions wrote says neither what it holds nor which code it was made with."""
    seal = writer.sealed

    def earlier(header):
        later = ("contents", "code")
        config = {name: value for name, value in header["config"].items() if FIELDS[name].metadata["since"] <= 4}
        rest = {name: value for name, value in header.items() if name not in later}
        return seal({**rest, "config": config, "format": 4})

    monkeypatch.setattr(writer, "sealed", earlier)
    with blocks_of(3, small_dataset):
        assert not sweep.train(SMALL, tmp_path / "out", device, log=silent, stop=lambda: True)
    monkeypatch.undo()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["format"] == 4
    assert sweep.train(SMALL, tmp_path / "out", device, log=silent)
    found = Recording(tmp_path / "out")
    assert found.contents == small.contents._replace(layers=found.contents.layers) and found.layers == small.layers
    for t in (0, 9, 16):
        np.testing.assert_array_equal(found.gradients("fc2", t), small.gradients("fc2", t))


@pytest.fixture
def copy(small_path, tmp_path):
    return shutil.copytree(small_path, tmp_path / "copy")


def test_a_missing_block_is_found(copy):
    shutil.rmtree(copy / "blocks" / "9")
    with pytest.raises(RecordingError, match=r"is damaged: .*blocks/9 is missing"):
        Recording(copy)


@pytest.mark.parametrize("damage", ["removed", "truncated"])
@pytest.mark.parametrize("name", ["prediction", "loss", "cotangent.fc2"])
def test_a_damaged_array_is_found_and_named(copy, damage, name):
    (chunk, *_) = (file for file in (copy / "blocks" / "3" / f"record.{name}" / "c").rglob("*") if file.is_file())
    if damage == "removed":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-7])
    recording = Recording(copy)
    assert recording.loss(0).shape == (3, 50)
    with pytest.raises(RecordingError, match=rf"blocks/3/record\.{name} is damaged or missing"):
        next(block for block in recording.blocks() if block.iterations[0] == 3).read(name)


def test_a_block_that_does_not_belong_is_found(copy):
    (copy / "blocks" / "4").mkdir()
    with pytest.raises(RecordingError, match=r"blocks/4 does not belong to it"):
        Recording(copy)


def test_a_missing_data_set_is_found(copy):
    (copy / "dataset" / "labels.npy").unlink()
    with pytest.raises(RecordingError, match=r"labels\.npy is damaged or missing"):
        _ = Recording(copy).labels


@pytest.mark.parametrize("linked", ["blocks/3/record.loss", "blocks/3", "blocks", "dataset/labels.npy", "config.json"])
def test_links_out_of_a_recording_are_not_followed(copy, tmp_path, linked):
    (copy / linked).rename(tmp_path / "elsewhere")
    (copy / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordingError, match="is reached through a link"):
        recording = Recording(copy)
        recording.loss(3)
        _ = recording.labels


def test_a_link_to_a_recording_is_followed(small_path, tmp_path):
    (tmp_path / "link").symlink_to(small_path)
    assert Recording(tmp_path / "link").loss(3).shape == (3, 50)


def test_nothing_in_a_recording_is_executed(copy):
    """Pickles in arrays are refused, and so is an array that claims to be larger than its file."""
    array = np.array([print], dtype=object)
    np.save(copy / "dataset" / "ids.npy", array, allow_pickle=True)
    header = json.loads((copy / "config.json").read_text())
    header["dataset"]["ids"] = checksum_of((copy / "dataset" / "ids.npy").read_bytes())
    (copy / "config.json").write_text(json.dumps(sealed(header)))
    with pytest.raises(RecordingError, match=r"ids\.npy is damaged or missing: .*allow_pickle"):
        _ = Recording(copy).ids
    file = copy / "blocks" / "3" / "record.loss" / "zarr.json"
    description = json.loads(file.read_text().replace("50]", "500000000000]"))
    (block,) = (block for block in Recording(copy).blocks() if block.iterations[0] == 3)
    description["attributes"]["seal"] = storage._seal(description, f"{block._place}/record.loss")
    file.write_text(json.dumps(description))
    with pytest.raises(RecordingError, match=r"record\.loss is damaged or missing: c/0/0/0 has 4116 bytes"):
        Recording(copy).loss(3)


@pytest.mark.parametrize("change", [{"config": None}, {"config": {}}, {"num_iterations": "9"}, {"class_names": 3}])
def test_a_malformed_header_is_refused(copy, change):
    header = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(sealed({**header, **change})))
    with pytest.raises(RecordingError, match=r"config\.json does not belong to a recording"):
        Recording(copy)
    for name in change:
        rest = {key: value for key, value in header.items() if key != name}
        (copy / "config.json").write_text(json.dumps(sealed(rest)))
        with pytest.raises(RecordingError, match=f"it has no '{name}'"):
            Recording(copy)


def test_two_runs_do_not_write_to_one_recording(copy, device):
    shutil.rmtree(copy / "blocks" / "15")
    before = contents(copy)
    lock = locks.lock(copy)
    with pytest.raises(InputError, match="is being written by another run"):
        sweep.train(SMALL, copy, device, log=silent)
    assert contents(copy) == before
    with pytest.raises(InputError, match="is still being written and holds 15 of 17 records"):
        results.compute(Recording(copy))
    os.close(lock)
    with pytest.raises(InputError, match="is unfinished and holds 15 of 17 records"):
        results.compute(Recording(copy))
    assert sweep.train(SMALL, copy, device, log=silent)


def test_a_run_that_was_overtaken_does_not_write(copy, device, small_dataset, monkeypatch):
    shutil.rmtree(copy / "blocks" / "15")
    with pytest.raises(InputError, match="was written to by another run meanwhile"):
        Writer(copy, SMALL, small_dataset, Recording(copy).contents, 3, num_blocks=4)
    with pytest.raises(InputError, match="was begun by another run meanwhile"):
        other = dataclasses.replace(SMALL, learning_rate=0.5)
        Writer(copy, other, small_dataset, Recording(copy).contents, 3, num_blocks=5)
    with pytest.raises(InputError, match="was begun with other examples"):
        other = dataclasses.replace(small_dataset, labels=(small_dataset.labels + 1) % 10)
        Writer(copy, SMALL, other, Recording(copy).contents, 3, num_blocks=5)
    Writer(copy, SMALL, small_dataset, Recording(copy).contents, 3, num_blocks=5).close()  # no lock was left behind


def test_training_does_not_start_again_over_a_recording_without_its_data(copy):
    shutil.rmtree(copy / "dataset")
    shutil.rmtree(copy / "blocks" / "15")
    with pytest.raises(RecordingError, match=r"images\.npy is damaged or missing"):
        sweep.train(SMALL, copy, log=silent)


def test_a_state_that_cannot_be_restored_is_told(copy, device):
    shutil.rmtree(copy / "blocks" / "15")
    shutil.rmtree(copy / "blocks" / "12" / "state.parameters.fc1.bias")
    with pytest.raises(RecordingError, match=r"blocks/12: the state to continue from is damaged or missing"):
        sweep.train(SMALL, copy, device, log=silent)


def test_a_relative_path_stays_right(small_path, monkeypatch):
    monkeypatch.chdir(small_path.parent)
    recording = Recording(small_path.name)
    monkeypatch.chdir("/")
    assert recording.loss(np.int64(3)).shape == (3, 50)
    assert recording.labels.shape == (50,)
    assert "17 of 17 records" in repr(recording)
    with pytest.raises(TypeError):
        recording.loss(3.0)


def test_the_documented_way_to_read_it_needs_none_of_our_code(small, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "READING.md").read_text()
    text = page.partition("## Reading it without train_dynamics")[2]
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "seed, t, example = 0, 100, 42" in program
    program = program.replace("seed, t, example = 0, 100, 42", "seed, t, example = 2, 10, 42")
    program += "\nimport sys, numpy\nassert not {'train_dynamics', 'orbax', 'jax'} & set(sys.modules)"
    (tmp_path / "recordings").mkdir()
    shutil.copytree(small.path, tmp_path / "recordings" / "mini_mnist")
    program += "\nnumpy.save('gradient.npy', gradient)\n"
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "gradient.npy"), small.gradients("fc2", 10)[2, 42])
