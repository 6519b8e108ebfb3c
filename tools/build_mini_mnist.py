"""Build the embedded mini_mnist from a prepared TFDS mnist, reproducibly.

    python tools/build_mini_mnist.py --data_dir=TFDS_DIR --output=train_dynamics/data

6,000 train and 1,000 test examples, drawn uniformly with seed 0. The `id` of an example is its index in the
split of the same name of TFDS mnist 3.0.1. Every build has the same examples in the same order; the files' bytes may
differ, because protobuf leaves the order of an example's features open.
"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from train_dynamics.data.datasets import subset

SIZES = {"train": 6000, "test": 1000}
DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory that holds the prepared TFDS mnist.", required=True)
OUTPUT = flags.DEFINE_string("output", "train_dynamics/data", "Existing directory to put mini_mnist in.")


def png(image: np.ndarray) -> io.BytesIO:
    """Encode a [28, 28, 1] image; TFDS stores a stream as it is, and needs TensorFlow for anything else."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "png", optimize=True)
    stream.seek(0)
    return stream


class MiniMnist(tfds.core.GeneratorBasedBuilder):
    """A uniform sample of MNIST, small enough to travel inside the package."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source: tfds.core.DatasetBuilder, **kwargs) -> None:
        self.source = source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="6,000 train and 1,000 test examples of TFDS mnist 3.0.1, drawn uniformly with seed 0.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "id": np.int64,
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
            citation=self.source.info.citation,
            license="CC BY-SA 3.0",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str):
        rows = self.source.as_data_source(split=split)
        for index in subset(len(rows), SIZES[split], seed=0).tolist():
            row = rows[index]
            yield index, {"image": png(row["image"]), "label": int(row["label"]), "id": index}


def main(_) -> None:
    target = Path(OUTPUT.value) / "mini_mnist"
    if target.exists():
        raise app.UsageError(f"--output={OUTPUT.value}: {target} exists; move it away first")
    source = tfds.builder("mnist:3.0.1", data_dir=DATA_DIR.value)
    with tempfile.TemporaryDirectory() as directory:
        MiniMnist(source=source, data_dir=directory, file_format="array_record").download_and_prepare()
        shutil.move(Path(directory) / "mini_mnist", target)


if __name__ == "__main__":
    app.run(main)
