import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.datasets import flip_labels, load_dataset, standardise, subset

MNIST = Path(__file__).parents[2] / "shared" / "data" / "tfds"
needs_mnist = pytest.mark.skipif(not (MNIST / "mnist").is_dir(), reason="no prepared TFDS mnist beside the checkout")


def png(image: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "png")
    stream.seek(0)
    return stream


def prepare(directory: Path, features: dict, rows: list[dict], name: str = "toy") -> StudyConfig:
    """Store a data set of the given features, as TFDS would, and give the configuration that reads it."""

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    Toy.name = name
    Toy(data_dir=directory, file_format="array_record").download_and_prepare()
    return StudyConfig(dataset=name, data_dir=str(directory), batch_size=1)


IMAGE = tfds.features.Image(shape=(3, 3, 1))


def test_mini_mnist_is_6000_and_1000_distinct_examples():
    train, test = load_dataset(StudyConfig()), load_dataset(StudyConfig(split="test"))
    for dataset, size, available in [(train, 6000, 60000), (test, 1000, 10000)]:
        assert dataset.images.shape == (size, 28, 28, 1)
        assert dataset.images.dtype == np.uint8
        assert len(set(dataset.ids.tolist())) == size
        assert dataset.ids.min() >= 0 and dataset.ids.max() < available
        # Drawn uniformly: mean of the indices within 4 standard errors of the middle.
        assert abs(dataset.ids.mean() - available / 2) < 4 * available / 12**0.5 / size**0.5
        assert set(dataset.labels.tolist()) == set(range(10))
    assert train.class_names == tuple("0123456789")


@needs_mnist
def test_mini_mnist_is_a_subset_of_mnist_and_the_same_code_path_draws_it():
    mini = load_dataset(StudyConfig())
    drawn = load_dataset(StudyConfig(dataset="mnist", data_dir=str(MNIST), num_examples=6000))
    np.testing.assert_array_equal(mini.ids, drawn.ids)
    np.testing.assert_array_equal(mini.images, drawn.images)
    np.testing.assert_array_equal(mini.labels, drawn.labels)


@needs_mnist
def test_subset_seed_draws_other_examples():
    of = {
        seed: load_dataset(
            StudyConfig(dataset="mnist", data_dir=str(MNIST), split="test", num_examples=500, subset_seed=seed)
        )
        for seed in (0, 1)
    }
    assert len(set(of[0].ids) & set(of[1].ids)) < 100


def test_the_embedded_set_is_found_whatever_the_flags(tmp_path):
    for change in ({"data_dir": str(tmp_path)}, {"dataset": "mini_mnist:1.0.0"}):
        assert len(load_dataset(StudyConfig(**change)).labels) == 6000


@needs_mnist
@pytest.mark.slow
def test_the_tool_builds_the_same_examples_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "mine").write_text("mine")
    tool = Path(__file__).parents[1] / "tools" / "build_mini_mnist.py"
    command = [sys.executable, str(tool), f"--data_dir={MNIST}", f"--output={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "downloads" / "mine").read_text() == "mine"
    for split in ("train", "test"):
        rows = tfds.builder_from_directory(tmp_path / "mini_mnist" / "1.0.0").as_data_source(split=split)
        embedded = load_dataset(StudyConfig(split=split))
        assert [row["id"] for row in rows] == embedded.ids.tolist()
        assert [row["label"] for row in rows] == embedded.labels.tolist()
        np.testing.assert_array_equal(np.stack([row["image"] for row in rows]), embedded.images)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode != 0 and "exists; move it away first" in again.stdout + again.stderr


def test_subset_is_sorted_distinct_and_whole_if_not_asked():
    drawn = subset(1000, 100, seed=3)
    assert (np.diff(drawn) > 0).all() and drawn[0] >= 0 and drawn[-1] < 1000
    np.testing.assert_array_equal(drawn, subset(1000, 100, seed=3))
    np.testing.assert_array_equal(subset(4, None, seed=3), [0, 1, 2, 3])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.999])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_flipped_labels_are_an_exact_share_and_never_the_same_class(rng, share, num_classes):
    labels = rng.integers(0, num_classes, 1001).astype(np.int32)
    before = labels.copy()
    noisy = flip_labels(labels, num_classes, share, seed=3)
    assert np.count_nonzero(noisy != labels) == round(share * 1001)
    assert noisy.min() >= 0 and noisy.max() < num_classes and noisy.dtype == labels.dtype
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(noisy, flip_labels(labels, num_classes, share, seed=3))


def test_flips_depend_on_seed_and_number_alone():
    zeros = np.zeros(2000, np.int64)
    flipped = {seed: flip_labels(zeros, 5, 0.5, seed) for seed in (0, 1)}
    counts = np.bincount(flipped[0], minlength=5)
    assert counts[0] == 1000 and (np.abs(counts[1:] - 250) < 70).all()  # five standard deviations of 250 +- 14
    both = np.count_nonzero((flipped[0] > 0) & (flipped[1] > 0))
    assert abs(both - 500) < 60  # seeds choose apart from each other
    # Other labels move as far; a smaller share flips some of the same examples, to the same labels.
    np.testing.assert_array_equal((flip_labels(zeros + 3, 5, 0.5, 0) - 3) % 5, flipped[0])
    fewer = flip_labels(zeros, 5, 0.2, 0)
    np.testing.assert_array_equal(fewer[fewer > 0], flipped[0][fewer > 0])
    assert np.count_nonzero(fewer) == 400
    drawn = subset(2000, 1000, seed=0)  # the draw of the examples has the same seed, and is another
    assert abs(np.count_nonzero(flipped[0][drawn]) - 500) < 60


def test_label_noise_comes_with_the_labels_that_were_there():
    clean, noisy = (load_dataset(StudyConfig(label_noise=share)) for share in (0.0, 0.1))
    assert clean.true_labels is None
    with pytest.raises(InputError, match="--label_noise=1e-05: flips none of 6000 labels; choose 0 or a larger share"):
        load_dataset(StudyConfig(label_noise=1e-5))
    np.testing.assert_array_equal(noisy.true_labels, clean.labels)
    assert np.count_nonzero(noisy.labels != clean.labels) == 600
    np.testing.assert_array_equal(noisy.images, clean.images)


def test_standardise_by_hand():
    # (0 - 0.5) / 0.25 = -2, (1 - 0.5) / 0.25 = 2, (51/255 - 0.5) / 0.25 = -1.2, in float32
    np.testing.assert_allclose(standardise(np.array([0, 255, 51], np.uint8), 0.5, 0.25), [-2, 2, -1.2], rtol=1e-6)
    assert standardise(np.array([7], np.uint8), 0.1307, 0.3081).dtype == np.float32


def test_any_prepared_set_reads_without_tensorflow(tmp_path, rng):
    images = rng.integers(0, 256, (5, 3, 3, 1)).astype(np.uint8)
    rows = [{"image": png(images[n]), "label": n % 2, "id": f"row {n}"} for n in range(5)]
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    dataset = load_dataset(prepare(tmp_path, {"image": IMAGE, "label": label, "id": tfds.features.Text()}, rows))
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.ids.tolist() == [f"row {n}" for n in range(5)]
    assert dataset.class_names == ("cat", "dog")
    assert "tensorflow" not in sys.modules


def test_colours_are_in_their_order(tmp_path, rng):
    images = rng.integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    features = {"image": tfds.features.Image(shape=(3, 4, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    dataset = load_dataset(prepare(tmp_path, features, [{"image": png(image), "label": 0} for image in images]))
    np.testing.assert_array_equal(dataset.images, images)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_image_is_told(tmp_path, rng, capfd, kind, damage):
    whole, image = io.BytesIO(), rng.integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(image).save(whole, kind)
    content = bytearray(whole.getvalue())
    if damage == "flipped":
        content[len(content) // 2 if kind == "png" else 0] ^= 4
    content = content[: {"cut": len(content) // 2, "flipped": len(content), "empty": 0}[damage]]
    image = tfds.features.Image(shape=(32, 32, 1), encoding_format=kind)
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=2)}
    rows = [{"image": io.BytesIO(content), "label": 0} for _ in range(2)]
    config = prepare(tmp_path, features, rows)
    capfd.readouterr()
    with pytest.raises(InputError, match=r"--dataset=toy: cannot be read in .*: an image in it is damaged$"):
        load_dataset(config)
    assert capfd.readouterr().err == ""
    os.write(2, b"here again")
    assert capfd.readouterr().err == "here again"


@pytest.mark.parametrize(
    ("features", "row", "message"),
    [
        ({"image": IMAGE}, {}, "--labels=: there is no feature label: toy has the features image; choose one with"),
        (
            {"image": IMAGE, "label": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2))},
            {"label": [0]},
            "--labels=label: must be one class or one number per example, not a list",
        ),
        (
            {"picture": IMAGE, "label": tfds.features.ClassLabel(num_classes=2)},
            {"label": 0},
            "--inputs=: there is no feature image: toy has the features label, picture; choose one with --inputs=NAME",
        ),
    ],
    ids=["no label", "many labels", "no image"],
)
def test_features_of_another_kind_are_refused(tmp_path, features, row, message):
    name = "picture" if "picture" in features else "image"
    config = prepare(tmp_path, features, [{name: png(np.zeros((3, 3, 1), np.uint8)), **row}])
    with pytest.raises(InputError, match=message):
        load_dataset(config)


def test_images_of_several_sizes_are_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    rows = [{"image": png(np.zeros((side, side, 1), np.uint8)), "label": 0} for side in (2, 3)]
    with pytest.raises(
        InputError,
        match=r"--dataset=toy: has images of different sizes, for example 2 x 2 and 3 x 3 .* --image_size=32",
    ):
        load_dataset(prepare(tmp_path, features, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "no_such_set"}, "--dataset=no_such_set: is neither prepared in .* nor known to TFDS"),
        ({"split": "validation"}, "--split=validation: mini_mnist has the splits test, train"),
        ({"num_examples": 6001}, "--num_examples=6001: mini_mnist has 6,000 examples in split train"),
        ({"dataset": "mnist", "data_dir": "no/such/place"}, "--data_dir=no/such/place: must be a directory"),
    ],
)
def test_what_there_is_not_is_refused(change, message):
    with pytest.raises(InputError, match=message) as error:
        load_dataset(StudyConfig(**change))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("default")  # urllib3 leaves a socket to the refused proxy behind
def test_a_dead_network_is_told_within_half_a_minute(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: refused
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        load_dataset(StudyConfig(dataset="fashion_mnist", data_dir=str(tmp_path)))
    assert time.monotonic() - began < 100  # a few seconds, and more on a busy machine; TFDS would try for 205
    for part in ("--dataset=fashion_mnist: is not prepared in", str(tmp_path), "cannot be reached", "tfds build"):
        assert part in str(error.value)
    assert not any(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("length", ["0", "-3"])
def test_a_split_said_to_be_empty_is_refused(tmp_path, length):
    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    config = prepare(tmp_path, features, [{"image": png(np.zeros((4, 4, 1), np.uint8)), "label": 0}] * 2)
    (about,) = tmp_path.rglob("dataset_info.json")
    about.write_text(re.sub(r'("shardLengths": \[\s*)"2"', rf'\1"{length}"', about.read_text()))
    with pytest.raises(InputError, match="--split=train: toy has no examples in it"):
        load_dataset(config)
