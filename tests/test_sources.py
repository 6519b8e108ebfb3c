"""Data of any kind: each source from a file made by hand, and the one line that each mistake gets."""

import struct

import cv2
import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from tests.conftest import run, silent
from tests.test_datasets import prepare
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.datasets import Dataset, load_dataset
from train_dynamics.data.scaling import network_inputs
from train_dynamics.data.showing import example_text, has_pictures, shown
from train_dynamics.data.trees import DataError, leaves, restored, structure
from train_dynamics.plots import grids
from train_dynamics.plots import scores as score_plots
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.training import sweep

SMALL = {"num_seeds": 2, "epochs": 2, "batch_size": 8, "hidden_sizes": (3,)}


def load(path, **fields):
    return load_dataset(StudyConfig(dataset=str(path), **fields))


def refusal(path, **fields):
    """The one line of a mistake."""
    with pytest.raises(InputError) as error:
        load(path, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def recorded(tmp_path, device, path, **fields):
    sweep.train(StudyConfig(dataset=str(path), **SMALL, **fields), tmp_path / "recording", device, log=silent)
    return Recording(tmp_path / "recording")


# Dataset


def test_labels_may_have_gaps_or_be_words():
    gaps = Dataset(np.zeros((4, 2)), [7, 3, 7, 100])
    assert gaps.labels.tolist() == [1, 0, 1, 2] and gaps.labels.dtype == np.int32
    assert gaps.class_names == ("3", "7", "100")  # in the order of numbers, not of words
    words = Dataset(np.zeros((3, 2)), np.array(["dog", "cat", "dog"], object))
    assert words.labels.tolist() == [1, 0, 1] and words.class_names == ("cat", "dog")
    assert words.ids.tolist() == [0, 1, 2]
    keras = Dataset(np.zeros((2, 2)), np.array([[1], [0]]))
    assert keras.labels.tolist() == [1, 0]
    truth = Dataset(np.zeros((2, 2)), [True, False])
    assert truth.class_names == ("False", "True")


def test_named_classes_keep_their_numbers():
    dataset = Dataset(np.zeros((2, 2)), [2, 0], class_names=("a", "b", "c"))
    assert dataset.labels.tolist() == [2, 0] and dataset.num_classes == 3
    assert Dataset(np.zeros((2, 2)), ["c", "a"], class_names=("a", "b", "c")).labels.tolist() == [2, 0]


def test_numbers_with_a_point_are_a_regression():
    for labels in (np.array([0.5, 1.0]), np.ones((2, 3))):
        dataset = Dataset(np.zeros((2, 2)), labels)
        assert dataset.is_regression and dataset.class_names == () and dataset.labels.dtype == np.float32
        assert dataset.labels.shape == labels.shape


@pytest.mark.parametrize(
    ("shape", "dtype", "images"),
    [
        ((2, 4, 5), np.uint8, (2, 4, 5, 1)),
        ((2, 4, 5, 3), np.uint16, (2, 4, 5, 3)),
        ((2, 4, 5, 2), np.uint8, None),
        ((2, 20), np.uint8, None),
        ((2, 4, 5, 1), np.float32, None),
    ],
)
def test_what_is_an_image(shape, dtype, images):
    found = Dataset(np.zeros(shape, dtype), [0, 1]).images
    assert found is None if images is None else found.shape == images


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": np.zeros((3, 2))}, "inputs and labels must have the same length, not 3 and 2"),
        ({"inputs": {"a": np.zeros((2, 2)), "b": np.zeros(3)}}, "inputs.b and labels must have the same length"),
        ({"ids": [1]}, "ids and labels must have the same length, not 1 and 2"),
        ({"inputs": {}}, "inputs must hold an array"),
        ({"inputs": {"a/b": np.zeros(2)}}, "the names of inputs may contain only letters"),
        (
            {"inputs": np.array(["x", "y"])},
            "inputs must be an array of numbers with the same shape for every example, not of",
        ),
        ({"inputs": 3}, "inputs must be an array with a leading axis of examples"),
        ({"labels": np.zeros((2, 2), int)}, "labels must be a whole number or a word per example"),
        ({"labels": [0, 2], "class_names": ("a", "b")}, "labels must be from 0 to 1, but example 1 has 2"),
        ({"labels": ["a", "x"], "class_names": ("a", "b")}, "labels must be among the classes a, b, but example 1 has"),
        ({"feature_names": ("a",)}, "has 1 feature names, but another number of input columns"),
        ({"vocabulary": ("a",)}, "has a vocabulary, but inputs that are not an array of token ids"),
        ({"inputs": np.array([[0], [1]]), "vocabulary": ("a",)}, "token ids must be from 0 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(DataError, match=f"^{message}"):
        Dataset(**{"inputs": np.zeros((2, 2)), "labels": [0, 1], **fields})


def test_trees_are_taken_apart_and_put_together():
    tree = {"b": [1, (2, 3)], "a": 4}
    assert list(leaves(tree)) == [("a", 4), ("b.0", 1), ("b.1.0", 2), ("b.1.1", 3)]
    assert restored(structure(tree), dict(leaves(tree)).__getitem__) == tree


# What the network sees


def test_pixels_of_16_bits_are_scaled_by_their_own_largest_value():
    images = np.array([[[0, 65535]], [[13107, 0]]], np.uint16)
    seen = network_inputs(Dataset(images, [0, 1]), StudyConfig(pixel_mean=0.5, pixel_std=0.25))
    np.testing.assert_allclose(seen[..., 0], [[[-2, 2]], [[-1.2, -2]]], rtol=1e-6)


def test_columns_of_tables_are_standardised_and_held_out_ones_by_the_same_numbers():
    table = Dataset(np.array([[1e9 + 1, 5], [1e9 + 3, 5]]), [0, 1], feature_names=("a", "b"))
    np.testing.assert_array_equal(network_inputs(table, StudyConfig()), [[-1, 0], [1, 0]])  # float64 until then
    other = Dataset(np.array([[1e9 + 5, 7.0]]), [0], feature_names=("a", "b"))
    np.testing.assert_array_equal(network_inputs(other, StudyConfig(), table), [[3, 0]])


def test_all_else_is_seen_as_it_is():
    tree = {"image": np.full((1, 2, 2, 1), 255, np.uint8), "tokens": np.array([[3]]), "x": (np.array([[0.5]]),)}
    seen = network_inputs(Dataset(tree, [0]), StudyConfig(pixel_mean=0.0, pixel_std=1.0))
    assert seen["image"].tolist() == [[[[1.0], [1.0]], [[1.0], [1.0]]]]
    assert seen["tokens"].dtype == np.int32 and seen["x"][0].dtype == np.float32
    counts = Dataset(np.array([[0], [255]], np.uint8), [0, 1])
    assert network_inputs(counts, StudyConfig()).dtype == np.int32
    asked = network_inputs(counts, StudyConfig(input_scaling="pixels", pixel_mean=0.0, pixel_std=1.0))
    np.testing.assert_array_equal(asked, [[0], [1]])


# What figures show


def test_rows_texts_and_numbers_are_shown_as_they_are():
    table = Dataset(np.array([[31.5, 1, 0], [2, 0, 1]]), [0, 1], feature_names=("age", "colour=red", "colour=blue"))
    assert shown(table, np.array([0, 1])) == ["age 31.5\ncolour=red", "age 2\ncolour=blue"]
    text = Dataset(np.array([[0, 1, 0]]), [0], vocabulary=("to", "be"))
    assert shown(text, np.array([0])) == ["to be to"]
    letters = Dataset(np.array([[0, 1, 0]]), [0], vocabulary="ab")
    assert shown(letters, np.array([0])) == ["aba"]
    assert example_text(Dataset(np.array([[1.0, 0.25]]), [0]), 0) == "1 0.25"
    tree = {"mask": np.ones((1, 2)), "x": np.zeros((1, 4, 5, 7))}
    assert example_text(Dataset(tree, [0]), 0) == "mask: 1 1\nx: 4 x 5 x 7 numbers\n0 to 0"
    long = example_text(Dataset(np.zeros((1, 1000)), [0]), 0).splitlines()
    assert len(long) == 6 and all(len(line) <= 26 for line in long) and long[-1].endswith(" more lines")
    wide = Dataset(np.ones((1, 9)), [0], feature_names=["a very long name of a column" + str(n) for n in range(9)])
    assert all(len(line) <= 26 for line in example_text(wide, 0).splitlines())


def test_images_are_shown_in_8_bits():
    deep = Dataset(np.array([[[0, 1000]], [[500, 250]]], np.uint16), [0, 1])
    assert shown(deep, np.array([1, 0]))[..., 0].tolist() == [[[128, 64]], [[0, 255]]]
    numbers = Dataset(np.array([-1.0, 1.0]).reshape(1, 1, 2, 1), [0])
    assert shown(numbers, np.array([0])).ravel().tolist() == [0, 255]
    assert not has_pictures(Dataset(np.zeros((1, 2, 2)), [0]))


@pytest.mark.parametrize("count", [1, 30])
def test_texts_are_drawn_in_order(count):
    texts, captions = [f"text {n}\n$x" for n in range(count)], [f"label {n}" for n in range(count)]
    (axes,) = grids.example_grid(texts, captions, "title").axes
    drawn = [text.get_text() for text in axes.texts]
    assert drawn[::2] == texts[:24] and drawn[1::2] == captions[:24]
    figure = score_plots.extremes(texts, texts[::-1], (captions, captions), ("easy", "hard"), "title")
    assert [axes.texts[0].get_text() for axes in figure.axes] == [texts[0], texts[-1]]


# .npz


@pytest.fixture
def arrays(rng):
    return {"inputs": rng.normal(size=(20, 4)).astype(np.float32), "labels": np.arange(20) % 3}


def saved(tmp_path, arrays, name="set.npz"):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name


def test_npz(tmp_path, arrays):
    path = saved(tmp_path, {"x": arrays["inputs"], "y": 10 * arrays["labels"], "ids": np.arange(20) + 100})
    found = load(path, inputs="x", labels="y", num_examples=5)
    assert found.class_names == ("0", "10", "20")  # of all, not of those drawn
    np.testing.assert_array_equal(found.inputs, arrays["inputs"][found.ids - 100])
    np.testing.assert_array_equal(found.labels, (found.ids - 100) % 3)
    both = load(saved(tmp_path, arrays), inputs="inputs,labels")
    assert set(both.inputs) == {"inputs", "labels"}


def test_slices_of_what_has_no_splits(tmp_path, arrays):
    path = saved(tmp_path, arrays)
    assert load(path, split="train[:25%]").ids.tolist() == list(range(5))
    assert load(path, split="train[-2:]+train[:1]").ids.tolist() == [18, 19, 0]
    assert "--split=test: " in refusal(path, split="test")
    assert "has no examples in it" in refusal(path, split="train[20:]")
    assert "must be a split or parts of splits" in refusal(path, split="train[:5")


def test_label_noise_needs_another_class(tmp_path, arrays):
    assert np.count_nonzero(load(saved(tmp_path, arrays), label_noise=0.1).labels != arrays["labels"]) == 2
    one = saved(tmp_path, {**arrays, "labels": np.zeros(20, int)})
    assert refusal(one, label_noise=0.1).endswith("has one class, and no other to flip to")
    regression = saved(tmp_path, {**arrays, "labels": np.zeros(20)})
    assert refusal(regression, label_noise=0.1).endswith("has numbers to predict, and no classes")


def test_npz_mistakes(tmp_path, arrays):
    path = saved(tmp_path, {"x": arrays["inputs"], "labels": arrays["labels"]})
    assert refusal(path) == f"--inputs=: there is no array inputs: {path} has x, labels; choose with --inputs=NAME"
    assert refusal(path, inputs="x", labels="y") == f"--labels=y: {path} has x, labels; choose with --labels=NAME"
    assert "inputs and labels must have the same length, not 20 and 19" in refusal(
        saved(tmp_path, {**arrays, "labels": arrays["labels"][:19]})
    )
    broken = arrays["inputs"].copy()
    broken[7, 2] = np.nan
    assert f"--dataset={path}: inputs of example 7 (id 7) has nan" in refusal(
        saved(tmp_path, {**arrays, "inputs": broken})
    )
    target = np.ones(20)
    target[3] = np.inf
    assert "labels of example 3 (id 3) has inf" in refusal(saved(tmp_path, {**arrays, "labels": target}))
    assert "it holds Python objects" in refusal(saved(tmp_path, {**arrays, "labels": np.array([{}] * 20)}))
    assert "has no images to resize" in refusal(saved(tmp_path, arrays), image_size=4)
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    assert "broken.npz: cannot be read" in refusal(tmp_path / "broken.npz")
    assert "there is no such file or directory" in refusal(tmp_path / "none.npz")
    (tmp_path / "text.txt").write_text("text")
    assert "must be a directory of images, or a file that ends in .npz" in refusal(tmp_path / "text.txt")


# Directories of images


def paint(path, height=4, width=5, channels=3, dtype=np.uint8, value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((height, width, channels), value, dtype)
    image[..., -1] = 0  # the last channel of OpenCV is red
    assert cv2.imwrite(str(path), image)


def test_a_directory_of_images(tmp_path):
    for name in ("cat/2.png", "cat/10.PNG", "dog/1.jpg", "dog/a.jpeg"):
        paint(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    found = load(tmp_path)
    assert found.ids.tolist() == ["cat/10.PNG", "cat/2.png", "dog/1.jpg", "dog/a.jpeg"]
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 0, 1, 1]
    assert found.images.shape == (4, 4, 5, 3)
    assert found.images[0, 0, 0].tolist() == [0, 200, 200]  # red is first


def test_images_of_any_size_depth_and_colour(tmp_path):
    paint(tmp_path / "a" / "1.png", 8, 6)
    paint(tmp_path / "a" / "2.png", 3, 3, channels=1)
    paint(tmp_path / "b" / "1.png", dtype=np.uint16, value=51400)
    line = refusal(tmp_path)
    assert "for example 3 x 3 and 8 x 6 pixels; give one size for all of them, for example --image_size=32" in line
    found = load(tmp_path, image_size=4).images
    assert found.shape == (3, 4, 4, 3) and found.dtype == np.uint16
    np.testing.assert_array_equal(
        found[0], np.broadcast_to([0, 51400, 51400], (4, 4, 3))
    )  # 200 of 255 is 51400 of 65535


def test_resizing_averages_areas(tmp_path):
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "1.png"), np.array([[0, 100, 8, 8], [100, 200, 8, 8]], np.uint8).repeat(2, axis=0))
    found = load(tmp_path, image_size=2).images[0, ..., 0]
    np.testing.assert_array_equal(found, [[50, 8], [150, 8]])


def test_directory_mistakes(tmp_path):
    assert "has no sub-directory" in refusal(tmp_path)
    paint(tmp_path / "set" / "train" / "cat" / "1.png")
    assert f"did you mean {tmp_path}/set/train?" in refusal(tmp_path / "set")
    (tmp_path / "set" / "train" / "dog").mkdir()
    assert "has no PNG or JPEG images in dog" in refusal(tmp_path / "set" / "train")
    (tmp_path / "set" / "train" / "dog" / "1.png").write_bytes(b"no image")
    assert "dog/1.png is damaged, or not a PNG or JPEG image" in refusal(tmp_path / "set" / "train")


# Tables


CSV = "id,age,colour,smokes,kind\np1,30,red,true,x\np2,40,blue,false,y\np3,50,red,true,x\n"


def test_tables(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    found = load(tmp_path / "t.csv", labels="kind")
    assert found.feature_names == ("age", "colour=blue", "colour=red", "smokes")
    np.testing.assert_array_equal(found.inputs, [[30, 0, 1, 1], [40, 1, 0, 0], [50, 0, 1, 1]])
    assert found.ids.tolist() == ["p1", "p2", "p3"] and found.class_names == ("x", "y")
    assert load(tmp_path / "t.csv", labels="kind", inputs="smokes").feature_names == ("smokes",)
    columns = {"a": pa.array([1, 2], pa.int8()), "b": pa.array(["u", "v"]).dictionary_encode(), "y": [0.5, 1.5]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = load(tmp_path / "t.parquet", labels="y")
    assert found.is_regression and found.feature_names == ("a", "b=u", "b=v")


def test_table_mistakes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    listed = f"of {path}, which has id, age, colour, smokes, kind"
    assert refusal(path) == f"--labels=: must be a column {listed}"
    assert refusal(path, labels="knd") == f"--labels=knd: must be a column {listed}"
    assert (
        refusal(path, labels="kind", inputs="age,kind")
        == f"--inputs=age,kind: must be columns {listed}, other than the labels"
    )
    path.write_text("a,y\n1,u\n,v\n")
    assert "column a, of example 1 (id 1) has nan" in refusal(path, labels="y")
    path.write_text("a,y\n1,\n2,3\n")
    assert "column y is empty in row 0" in refusal(path, labels="y")
    path.write_text("a,y\n1,u\n2,\n")
    assert "column y is empty in row 1" in refusal(path, labels="y")
    path.write_text("a,y\n")
    assert "has no examples in it, only the names of columns" in refusal(path, labels="y")
    path.write_bytes(b"\xe9,y\n1,u\n")
    assert "is not text in UTF-8" in refusal(path, labels="y")
    path.write_text("a,y\n" + "".join(f"word{n},1\n" for n in range(101)))
    assert "column a has 101 different words, for example 'word0'" in refusal(path, labels="y")
    path.write_text("a,y\n2020-01-01,1\n")
    assert "column a has date32[day], neither numbers nor words; leave it out: --inputs=" in refusal(path, labels="y")
    path.write_text("a,a,y\n1,2,3\n")
    assert "has more than one column 'a'" in refusal(path, labels="y")
    path.write_text("a,y\n1,2\n3\n")
    assert "cannot be read: " in refusal(path, labels="y")
    (tmp_path / "t.parquet").write_text("no table")
    assert "cannot be read: " in refusal(tmp_path / "t.parquet", labels="y")


# Functions


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("COUNT = 4\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from beside import COUNT\n"
        "from train_dynamics.data.datasets import Dataset\n"
        "def pair():\n    return np.zeros((COUNT, 2)), ['a', 'b'] * 2\n"
        "def named():\n    return {'inputs': np.zeros((2, 1), int), 'labels': [0, 1], 'vocabulary': ['the']}\n"
        "def whole():\n    return Dataset({'x': np.zeros((3, 2)), 'y': (np.ones(3),)}, [0.5, 1, 2])\n"
        "def wrong():\n    return 3\n"
        "def fails():\n    raise KeyError('oh no')\n"
    )
    mine = tmp_path / "mine.py"
    assert load(f"{mine}:pair").class_names == ("a", "b")
    assert load(f"{mine}:named").vocabulary == ("the",)
    assert load(f"{mine}:whole", num_examples=2).inputs["y"][0].shape == (2,)
    assert "must return a Dataset, a pair (inputs, labels), or a dict" in refusal(f"{mine}:wrong")
    assert "raised KeyError: 'oh no'" in refusal(f"{mine}:fails")
    assert "has no pairs; it has np, COUNT, Dataset, pair, named" in refusal(f"{mine}:pairs")
    assert "there is no file" in refusal(f"{tmp_path}/other.py:pair")
    assert "cannot be imported: ModuleNotFoundError: No module named 'nowhere'" in refusal("nowhere:data")
    (tmp_path / "broken.py").write_text("import nowhere\n")
    assert "broken.py cannot be imported: ModuleNotFoundError: No module" in refusal(f"{tmp_path}/broken.py:data")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("beside:COUNT".replace("beside", "mine").replace("COUNT", "pair")).labels.tolist() == [0, 1, 0, 1]


# TFDS


def toy(tmp_path, rng):
    """Six images of 16 bits, in features called otherwise than usual."""
    images = rng.integers(0, 65536, (6, 3, 3, 1)).astype(np.uint16)
    features = {
        "img": tfds.features.Image(shape=(3, 3, 1), dtype=np.uint16, encoding_format="png"),
        "fine": tfds.features.ClassLabel(num_classes=3),
        "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "amount": np.float32,
        "words": tfds.features.Text(),
    }
    import io

    rows = [
        {
            "img": io.BytesIO(cv2.imencode(".png", image)[1].tobytes()),
            "fine": n % 3,
            "vector": [n, 0.5],
            "amount": n / 4,
            "words": f"w{n % 2}",
        }
        for n, image in enumerate(images)
    ]
    return images, prepare(tmp_path, features, rows)


def of(config, **fields):
    import dataclasses

    return load_dataset(dataclasses.replace(config, **fields))


def test_tfds_features_by_other_names(tmp_path, rng):
    images, config = toy(tmp_path, rng)
    found = of(config, inputs="img", labels="fine", split="train[50%:]+train[:1]")
    np.testing.assert_array_equal(found.images, images[[3, 4, 5, 0]])
    assert found.images.dtype == np.uint16
    assert found.ids.tolist() == [3, 4, 5, 0] and found.labels.tolist() == [0, 1, 2, 0]
    found = of(config, inputs="vector", labels="amount")
    assert found.is_regression and found.inputs[3].tolist() == [3, 0.5]
    assert of(config, inputs="vector", labels="words").class_names == ("w0", "w1")
    with pytest.raises(InputError, match=r"^--inputs=words: holds text, but networks take numbers"):
        of(config, inputs="words", labels="fine")
    with pytest.raises(InputError, match=r"^--labels=name: toy has the features amount, fine, img, vector, words; "):
        of(config, inputs="img", labels="name")


def test_several_splits_are_told_apart():
    found = load_dataset(StudyConfig(split="train[:2]+test[:1]"))
    first = load_dataset(StudyConfig(split="train[:2]"))
    test = load_dataset(StudyConfig(split="test[:1]"))
    assert found.ids.tolist() == [f"train:{n}" for n in first.ids] + [f"test:{n}" for n in test.ids]
    np.testing.assert_array_equal(found.images, np.concatenate([first.images, test.images]))


def masked(content):
    value = google_crc32c.value(content)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_tfrecords_are_read_without_tensorflow(tmp_path, rng):
    images, config = toy(tmp_path, rng)
    prepared = tmp_path / "toy" / "1.0.0"
    source = tfds.builder_from_directory(prepared).as_data_source(split="train")
    records = [source.data_source[n] for n in range(6)]
    for file in prepared.glob("*.array_record*"):
        file.unlink()
    for shard, part in enumerate((records[:4], records[4:])):
        framed = [(struct.pack("<Q", len(record)), record) for record in part]
        content = b"".join(size + masked(size) + record + masked(record) for size, record in framed)
        (prepared / f"toy-train.tfrecord-0000{shard}-of-00002").write_bytes(content)
    about = prepared / "dataset_info.json"
    text = about.read_text().replace("array_record", "tfrecord").replace('"6"', '"4", "2"')
    about.write_text(text)
    config = StudyConfig(dataset="toy", data_dir=str(tmp_path), inputs="img", labels="fine")
    np.testing.assert_array_equal(load_dataset(config).images, images)
    np.testing.assert_array_equal(of(config, split="train[3:5]").images, images[3:5])
    (prepared / "toy-train.tfrecord-00000-of-00002").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"--dataset=toy: cannot be read in .* is damaged or cut off"):
        load_dataset(config)
    about.write_text(text.replace("tfrecord", "riegeli"))
    with pytest.raises(
        InputError, match=r"as riegeli, a format not supported here; convert it once, .*tfds convert_format"
    ):
        load_dataset(config)
    (prepared / "features.json").unlink()
    with pytest.raises(InputError, match=r"is in .*, but in an old format"):
        load_dataset(config)


# Recorded and analysed


def test_a_recording_of_features(tmp_path, device, arrays):
    path = saved(tmp_path, {**arrays, "feature_names": list("abcd")})
    recording = recorded(tmp_path, device, path)
    assert {file.name for file in (recording.path / "dataset").iterdir()} == {"inputs.npy", "labels.npy", "ids.npy"}
    assert recording.images is None and recording.data.feature_names == tuple("abcd")
    np.testing.assert_array_equal(recording.data.inputs, arrays["inputs"])
    seen = recording.inputs()
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(seen.std(axis=0), 1, rtol=1e-5)
    assert verify(recording, samples=3).problems == []
    (recording.path / "dataset" / "inputs.npy").write_bytes(b"damaged")
    assert "inputs.npy is damaged or missing" in verify(Recording(recording.path), samples=0).problems[0]


def test_a_batch_larger_than_the_set_is_the_whole_set(tmp_path, device, arrays):
    path, found = saved(tmp_path, arrays), []
    for name, size in (("large", 10**12), ("whole", 20)):
        config = StudyConfig(dataset=str(path), **{**SMALL, "batch_size": size})
        sweep.train(config, tmp_path / name, device, log=silent)
        found.append(Recording(tmp_path / name).loss(2))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 20, 3)], ids=["one example", "one class"])
def test_little_data_is_recorded(tmp_path, device, arrays, kept):
    path = saved(tmp_path, {name: array[kept] for name, array in arrays.items()})
    recording = recorded(tmp_path, device, path)
    assert recording.finished and recording.class_names == ("0",)
    assert verify(recording, samples=3).problems == []
    assert not recording.loss(2).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.zeros((20, 3), int)}, "has whole numbers of int64, but the MLP needs decimal numbers"),
        (
            {"inputs": np.zeros((20, 3), int), "vocabulary": ["a"]},
            "has token ids, which need a --model that embeds them",
        ),
    ],
)
def test_what_the_mlp_does_not_take_is_refused(tmp_path, device, arrays, change, message):
    path = saved(tmp_path, {**arrays, **change})
    with pytest.raises(InputError, match=message):
        recorded(tmp_path, device, path)
    assert not (tmp_path / "recording").exists()


def test_a_regression_is_recorded(tmp_path, device, arrays):
    recording = recorded(tmp_path, device, saved(tmp_path, {**arrays, "labels": arrays["inputs"][:, 0]}))
    assert recording.class_names == () and recording.data.is_regression
    np.testing.assert_array_equal(recording.labels, arrays["inputs"][:, 0])
    assert verify(recording, samples=3).problems == []


def test_a_tree_of_arrays_on_disk_and_back():
    from train_dynamics.recording.examples import check_example_header, example_arrays, example_header, read_examples

    tree = {"image": np.zeros((2, 3, 3), np.uint8), "more": (np.ones((2, 1)), [np.arange(2)])}
    dataset = Dataset(tree, [0.5, 1.5], vocabulary=())
    files = example_arrays(dataset)
    assert set(files) == {"inputs.image", "inputs.more.0", "inputs.more.1.0", "labels", "ids"}
    header = {**example_header(dataset), "dataset": dict.fromkeys(files, "checksum")}
    check_example_header(header)
    again = read_examples(header, files.__getitem__)
    assert structure(again.inputs) == structure(tree) and again.is_regression
    np.testing.assert_array_equal(again.inputs["more"][1][0], [0, 1])
    for form in ({"set": {}}, {"dict": 3}, {"dict": {"other": None}}, 5):
        with pytest.raises(ValueError, match="inputs"):
            check_example_header({**header, "inputs": form})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "images", "csv"])
def test_from_data_to_report(tmp_path, arrays, rng, kind):
    if kind == "npz":
        saved(tmp_path, arrays)
        flags = ["--dataset=set.npz"]
    elif kind == "images":
        for n in range(24):
            paint(tmp_path / "set" / "ab"[n % 2] / f"{n}.png", 5 + n % 3, 6, value=10 * n)
        flags = ["--dataset=set", "--image_size=5"]
    else:
        rows = [f"{n % 7},{['red', 'blue'][n % 2]},{['x', 'y'][n % 2]}" for n in range(24)]
        (tmp_path / "t.csv").write_text("\n".join(["size,colour,kind", *rows]))
        flags = ["--dataset=t.csv", "--labels=kind"]
    settings = ["--recording=out", "--seeds=2", "--epochs=4", "--batch_size=8"]
    done = run("train", *settings, *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("analyze", "--recording=out", "--parts=cones,motion", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "analysis" / "figures" / "examples_random.png").is_file()
    done = run("verify", "--recording=out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
