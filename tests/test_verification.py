"""A recording that is right passes; every damage that changes a value is found and named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests import oracles
from tests.conftest import SMALL, blocks_of, run, silent
from train_dynamics.config import StudyConfig
from train_dynamics.recording import verification, writer
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.storage import PAGE, write_array
from train_dynamics.recording.verification import replay, verify
from train_dynamics.training import sweep


@pytest.fixture
def copy(small_path, tmp_path):
    return shutil.copytree(small_path, tmp_path / "copy")


@pytest.fixture(scope="module")
def deep_paths(tmp_path_factory, device):
    paths = {}
    for layout in ("factored", "dense"):
        config = StudyConfig(
            num_examples=30, epochs=1, num_seeds=2, batch_size=8, hidden_sizes=(7, 6), gradient_layout=layout
        )
        config = StudyConfig(**{**config.__dict__, "layers": ("fc1", "fc2", "fc3")})
        paths[layout] = tmp_path_factory.mktemp(layout) / "recording"
        sweep.train(config, paths[layout], device, log=silent)
    return paths


def test_replay_is_the_chain_rule(rng):
    sizes = (12, 7, 6, 4)
    weights = {
        f"fc{k + 1}": {"kernel": rng.normal(size=sizes[k : k + 2]), "bias": rng.normal(size=sizes[k + 1])}
        for k in range(3)
    }
    images, labels = rng.normal(size=(20, 3, 4)), rng.integers(0, 4, 20)
    found = replay(weights, images, labels)
    for n in range(20):
        logits = oracles.forward(weights, images[n])[1]
        np.testing.assert_allclose(found.logits[n], logits)
        np.testing.assert_allclose(found.loss[n], -np.log(oracles.softmax(logits)[labels[n]]))
        for name, gradient in oracles.backward(weights, images[n], labels[n]).items():
            np.testing.assert_allclose(found.gradients[name][n], gradient, atol=1e-12)
    at_the_kink = weights["fc1"]["kernel"].T @ images[0].ravel()
    weights["fc1"]["bias"] = -at_the_kink
    assert replay(weights, images, labels).clearance[0] < 1e-12 < replay(weights, images, labels).clearance[1]


def test_a_good_recording_passes(small):
    blocks = []
    found = verify(small, samples=40, progress=blocks.append)
    assert found.problems == []
    assert found.num_compared == 40 * 50
    assert set(found.errors) == {"loss", "prediction", "gradient of fc2"}
    assert 0 < found.errors["gradient of fc2"] < 1e-5 and found.errors["prediction"] == 0
    assert [block.path for block in blocks] == [block.path for block in small.blocks()]
    first = next(small.blocks())
    assert set(first.names) == {path.name.removeprefix("record.") for path in first.path.glob("record.*")}
    stored = sum(block.read(name).nbytes for block in small.blocks() for name in block.names)
    assert found.num_bytes == stored + 6 * 3 * 4 * (784 * 5 + 5 + 5 * 10 + 10)  # and the state after each block


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_all_layers_of_a_deeper_network_pass_in_either_layout(deep_paths, layout):
    found = verify(Recording(deep_paths[layout]), samples=10)
    assert found.problems == []
    assert {f"gradient of fc{k}" for k in (1, 2, 3)} < set(found.errors)
    assert max(found.errors.values()) < 1e-5


def rewrite(block, name, array):
    """Replace an array as the recorder would have written it."""
    shutil.rmtree(block.path / f"record.{name}")
    write_array(block.path / f"record.{name}", array, place=f"{block._place}/record.{name}")


def exchange(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


@pytest.mark.parametrize("what", ["", "record.loss", "record.parameters.fc1.kernel", "state.parameters.fc1.bias"])
def test_blocks_and_arrays_that_changed_places_are_found(copy, what):
    exchange(copy / "blocks" / "3" / what, copy / "blocks" / "9" / what)
    said = problems(copy)
    for block in ("blocks/3", "blocks/9"):
        assert any(block in line and "it was changed, or is that of another array" in line for line in said)


def test_a_block_of_another_recording_is_found(copy, device, tmp_path, small_dataset):
    other = StudyConfig(**{**SMALL.__dict__, "learning_rate": 0.02})
    with blocks_of(3, small_dataset):
        sweep.train(other, tmp_path / "other", device, log=silent)
    shutil.rmtree(copy / "blocks" / "6")
    shutil.copytree(tmp_path / "other" / "blocks" / "6", copy / "blocks" / "6")
    assert all("blocks/6/" in line and "is that of another array" in line for line in problems(copy))
    with pytest.raises(RecordingError, match=r"blocks/6/record.loss is damaged"):
        Recording(copy).loss(6)


def test_iterations_that_changed_places_are_found(tmp_path, device, monkeypatch):
    monkeypatch.setattr(writer, "PIECE_BYTES", 1)  # so that each is a piece
    path = tmp_path / "recording"
    sweep.train(SMALL, path, device, log=silent)
    assert problems(path) == []
    state = json.loads((path / "blocks" / "0" / "state.parameters.fc1.kernel" / "zarr.json").read_text())
    assert len(state["attributes"]["checksums"]) == 1  # which has no iterations
    file = path / "blocks" / "0" / "record.cotangent.fc2" / "c" / "0" / "0" / "0" / "0"
    room, rest = 2 * PAGE, file.read_bytes()  # 3 x 50 x 10 numbers of 4 bytes and a checksum: two pages
    file.write_bytes(rest[: 4 * room] + rest[5 * room : 6 * room] + rest[4 * room : 5 * room] + rest[6 * room :])
    (line,) = problems(path)
    assert "record.cotangent.fc2" in line and "piece 4 was changed after it was written" in line


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_damaged_true_labels_are_found(tmp_path, device, damage):
    path = tmp_path / "recording"
    sweep.train(dataclasses.replace(SMALL, label_noise=0.2), path, device, log=silent)
    assert verify(Recording(path), samples=5).problems == []
    file = path / "dataset" / "true_labels.npy"
    if damage == "changed":
        file.write_bytes(file.read_bytes()[:-4] + bytes([1, 0, 0, 0]))
    else:
        file.unlink()
    (line,) = problems(path)
    assert "dataset/true_labels.npy is damaged or missing" in line
    with pytest.raises(RecordingError, match=r"true_labels\.npy is damaged or missing"):
        _ = Recording(path).noisy


def test_training_does_not_go_on_from_another_state(copy, device):
    shutil.rmtree(copy / "blocks" / "15")
    name = "state.parameters.fc1.kernel"
    exchange(copy / "blocks" / "3" / name, copy / "blocks" / "12" / name)
    with pytest.raises(RecordingError, match=r"blocks/12/state.parameters.fc1.kernel is damaged or missing"):
        sweep.train(SMALL, copy, device, log=silent)


def test_no_more_is_drawn_than_there_is(small):
    assert verify(small, samples=10**9).num_compared == 17 * 3 * 50


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("loss", lambda a: a + 0.001, "the loss of seed"),
        ("prediction", lambda a: (a + 1) % 10, "the prediction of seed"),
        ("cotangent.fc2", lambda a: a * np.float32(1.01), "the gradient of fc2 of seed"),
        ("activation.fc2", lambda a: a[:, :, ::-1], "the gradient of fc2 of seed"),
        ("parameters.fc1.kernel", lambda a: a[::-1], "the loss of seed"),
    ],
)
def test_values_that_were_wrong_when_written_are_found(copy, name, change, words):
    """Their checksums are right; only computing them again tells."""
    for block in Recording(copy).blocks():
        rewrite(block, name, change(block.read(name)).astype(block.read(name).dtype))
    found = verify(Recording(copy), samples=20)
    assert any(words in problem and "is not what weights and inputs give" in problem for problem in found.problems)
    assert verify(Recording(copy), samples=0).problems == []


def test_the_last_example_is_always_computed_again(copy, monkeypatch):
    monkeypatch.setattr(verification, "EXAMPLES", 2)  # of 50
    for block in Recording(copy).blocks():
        loss = block.read("loss").copy()
        loss[..., -1] += 0.001
        rewrite(block, "loss", loss)
    assert any("the loss of seed" in problem for problem in verify(Recording(copy), samples=1).problems)


def test_numbers_that_are_none_are_found(copy):
    for block in Recording(copy).blocks():
        rewrite(block, "loss", np.full_like(block.read("loss"), np.nan))
    assert any("the loss of seed" in problem for problem in verify(Recording(copy), samples=5).problems)


def values(path):
    """Everything that can be read out of a recording."""
    recording = Recording(path)
    yield str(recording.config), recording.class_names, recording.block_length, recording.num_records
    for name in ("images", "labels", "ids"):
        yield getattr(recording, name).tobytes()
    for block in recording.blocks():
        for name in block.names:
            yield block.read(name).tobytes()


def problems(path):
    """What verify says, as the command does."""
    try:
        return verify(Recording(path), samples=0).problems
    except RecordingError as error:
        return [str(error)]


def test_single_bytes_that_flip_anywhere_are_found_if_they_change_a_value(copy):
    rng = np.random.default_rng(1)
    whole = list(values(copy))
    files = sorted(file for file in copy.rglob("*") if file.is_file())
    # As many places in small files, which structure the rest, as in large ones, which hold the numbers.
    some = [files[k] for k in rng.choice(len(files), 40)]
    some += [file for file in files if file.stat().st_size > 5000][:10] + [copy / "config.json"] * 20
    assert len(some) >= 50
    found = 0
    for file in some:
        before = file.read_bytes()
        damaged = bytearray(before)
        place = int(rng.integers(len(before)))
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        said = problems(copy)
        if said:
            found += 1
            (line,) = said
            block = file.relative_to(copy).parts[:2] if file.is_relative_to(copy / "blocks") else (file.name,)
            assert "/".join(block) in line and "\n" not in line
        else:
            assert list(values(copy)) == whole, (file, place)
        file.write_bytes(before)
    assert problems(copy) == []
    assert found > 40


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_files_that_are_lost_or_cut_are_found_and_named(copy, damage):
    files = [file for file in copy.rglob("*") if file.is_file() and (file.name.endswith(("0", ".npy", "zarr.json")))]
    assert len(files) > 100
    for file in files[::5]:
        before = file.read_bytes()
        file.unlink() if damage == "removed" else file.write_bytes(before[: len(before) // 2])
        said = problems(copy)
        assert len(said) == 1 and "is damaged or missing" in said[0]
        assert str(file.relative_to(copy).parent).split("/c/")[0] in said[0]
        file.write_bytes(before)
    assert problems(copy) == []


def test_lost_blocks_seeds_and_arrays_are_found(copy):
    last = shutil.move(copy / "blocks" / "15", copy.parent / "15")
    assert any("is unfinished and holds 15 of 17 records" in problem for problem in problems(copy))
    shutil.move(last, copy / "blocks" / "15")
    shutil.rmtree(copy / "blocks" / "6" / "state.parameters.fc2.bias")
    first = next(Recording(copy).blocks())
    rewrite(first, "loss", first.read("loss")[:2])  # two of three seeds
    lost, short = sorted(problems(copy), key=lambda line: "blocks/0" in line)
    assert "blocks/6/state.parameters.fc2.bias is damaged or missing" in lost
    assert "it holds (2, 3) seeds and iterations and not (3, 3)" in short
    shutil.rmtree(copy / "blocks" / "9")
    assert any("blocks/9 is missing" in problem for problem in problems(copy))


def test_on_the_command_line(small_path, copy):
    done = run("verify", f"--recording={small_path}", "--samples=10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all 17 records of 3 seeds are there" in done.stdout
    assert "500 gradients were computed again" in done.stdout
    for name in ("3/record.cotangent.fc2", "9/record.prediction"):
        file = next(file for file in (copy / "blocks" / name / "c").rglob("*") if file.is_file())
        damaged = bytearray(file.read_bytes())
        damaged[17] ^= 64
        file.write_bytes(damaged)
    done = run("verify", f"--recording={copy}")
    assert done.returncode == 1 and done.stdout == ""
    one, other = done.stderr.splitlines()
    assert "blocks/3/record.cotangent.fc2 is damaged" in one and "blocks/9/record.prediction is damaged" in other
    analysed = run("analyze", f"--recording={copy}", f"--output={copy.parent / 'out'}")
    assert analysed.returncode == 1
    assert analysed.stderr.replace("analyze:", "verify:").splitlines() == [one]
    assert not (copy.parent / "out").exists()


def test_the_configuration_cannot_be_edited(copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"learning_rate": 0.01', '"learning_rate": 0.02'))
    assert "it was changed after it was written" in problems(copy)[0]
    header = json.loads(text)
    (copy / "config.json").write_text(json.dumps(header))  # other white space is no other value
    assert problems(copy) == []
    assert Recording(copy).config == SMALL
