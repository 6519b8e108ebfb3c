"""Everything a user can get wrong, in bulk: one clear line, a status that is not 0, no traceback, nothing written."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL, contents, run, run_anew, silent
from tests.test_datasets import png, prepare
from train_dynamics.config import StudyConfig
from train_dynamics.recording.format import sealed
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify
from train_dynamics.study.tables import PARTS
from train_dynamics.training import sweep

TOY = ["--dataset=toy", "--data_dir=data", "--batch_size=2"]
CASES = [
    # flags
    ("train", ["--epochs=0"], "--epochs=0: must be a whole number, 1 or more"),
    ("train", ["--epochs=-3"], "--epochs=-3: must be a whole number, 1 or more"),
    ("train", ["--epochs=1.5"], "flag --epochs=1.5: must be a whole number"),
    ("train", ["--epochs="], "flag --epochs=: must be a whole number"),
    ("train", ["--epochs"], "Missing value for flag --epochs"),
    ("train", ["--seeds=0"], "--seeds=0: must be a whole number, 1 or more"),
    ("train", ["--seeds=some"], "flag --seeds=some: must be a whole number"),
    ("train", ["--first_seed=-1"], "--first_seed=-1: must be"),
    ("train", ["--host_devices=0"], "--host_devices=0: must be a whole number, 1 to 1000"),
    ("train", ["--host_devices=1001"], "--host_devices=1001: must be a whole number, 1 to 1000"),
    (
        "train",
        ["--epochs=1000000000"],
        "--epochs=1000000000: makes 47,000,000,000 iterations to choose records from, and",
    ),
    ("train", ["--subset_seed=-1"], "--subset_seed=-1: must be"),
    ("train", ["--batch_size=0"], "--batch_size=0: must be"),
    ("train", ["--record_every=0"], "--record_every=0: must be a whole number, 1 or more"),
    ("train", ["--eval_batch_size=0"], "--eval_batch_size=0: must be a whole number, 1 or more"),
    ("train", ["--records_per_doubling=x"], "--records_per_doubling=x: must be a whole number"),
    ("train", ["--records_per_doubling=9", "--record_every=2"], "cannot be combined with --record_every"),
    ("train", ["--num_examples=0"], "--num_examples=0: must be"),
    ("train", ["--num_examples=60000"], "--num_examples=60000: mini_mnist has 6,000 examples"),
    ("train", ["--learning_rate=0"], "--learning_rate=0.0: must be"),
    ("train", ["--learning_rate=-1"], "--learning_rate=-1.0: must be"),
    ("train", ["--learning_rate=nan"], "--learning_rate=nan: must be"),
    ("train", ["--learning_rate=inf"], "--learning_rate=inf: must be"),
    ("train", ["--learning_rate=1e300"], "must be a positive number in float32, where it is inf"),
    ("train", ["--momentum=1"], "--momentum=1.0: must be"),
    ("train", ["--momentum=-0.1"], "--momentum=-0.1: must be"),
    ("train", ["--nesterov"], "--nesterov=True: "),
    ("train", ["--plan=yes,please"], "flag --plan=yes,please: must be true or false"),
    ("train", ["--plan", "--seeds=10000000"], "not enough memory: two records of 10,000,000 seeds need "),
    ("train", ["--distributed", "--num_processes=0", "--process_id=0"], "--num_processes=0: must be 1 or more"),
    ("train", ["--nesterov=perhaps"], "flag --nesterov=perhaps: must be true or false"),
    ("train", ["--label_noise=1"], "--label_noise=1.0: must be at least 0 and below 1"),
    ("train", ["--label_noise=-0.1"], "--label_noise=-0.1: must be at least 0 and below 1"),
    ("train", ["--label_noise=ten"], "flag --label_noise=ten: must be a number"),
    ("train", ["--recording=good", "--label_noise=0.1"], "another configuration (--num_examples "),
    ("train", ["--pixel_std=0"], "--pixel_std=0.0: must be"),
    ("train", ["--pixel_std=1e-300"], "--pixel_std=1e-300: must be a positive number in float32, where it is 0"),
    ("train", ["--pixel_mean=nan"], "--pixel_mean=nan: must be"),
    ("train", ["--hidden_sizes=8,x"], "--hidden_sizes=8,x: must be whole numbers, comma separated"),
    ("train", ["--hidden_sizes=0"], "--hidden_sizes=0: must be positive whole numbers"),
    ("train", ["--layers=fc9"], "--layers=fc9: must be one or more of fc1, fc2"),
    ("train", ["--layers=fc2,fc2"], "--layers=fc2,fc2: names a layer twice"),
    ("train", ["--layers="], "--layers=: must be one or more of fc1, fc2"),
    ("train", ["--gradient_layout=tight"], "--gradient_layout=tight: must be factored, dense, sketch or measures"),
    ("train", ["--colour=red"], "Unknown command line flag 'colour'; --help lists the flags"),
    ("train", ["recording"], "'recording' is not a flag; flags look like --recording=DIR"),
    ("train", ["--momentum=much"], "flag --momentum=much: must be a number"),
    # flag files
    ("train", ["--flagfile=missing.flags"], "Unable to open flagfile"),
    ("train", ["--flagfile=binary.flags"], "--flagfile=binary.flags: a flag file must be text, and this is not"),
    (
        "train",
        ["--flagfile=unknown.flags"],
        "flag 'colour'; --help lists the flags (in unknown.flags)",
    ),
    ("train", ["--flagfile=word.flags"], "'seeds=3' is not a flag; flags look like --recording=DIR (in word.flags)"),
    ("train", ["--flagfile=bad.flags"], "--epochs=0: must be a whole number, 1 or more (in bad.flags)"),
    ("train", ["--flagfile=malformed.flags"], "flag --seeds=ten: must be a whole number (in malformed.flags)"),
    # data
    ("train", ["--dataset=no_such_set"], "--dataset=no_such_set: is neither prepared in"),
    ("train", ["--dataset="], "--dataset="),
    ("train", ["--dataset=../mini_mnist"], "--dataset=../mini_mnist: "),
    (
        "train",
        ["--dataset=toy", "--data_dir=nowhere"],
        "--data_dir=nowhere: must be a directory of prepared",
    ),
    ("train", ["--split=holdout"], "--split=holdout: mini_mnist has the splits test, train"),
    (
        "train",
        ["--dataset=text", "--data_dir=data", "--batch_size=2"],
        "--inputs=: there is no feature image: text has the features text; ",
    ),
    (
        "train",
        ["--dataset=sizes", "--data_dir=data", "--batch_size=2"],
        "--dataset=sizes: has images of different sizes",
    ),
    (
        "train",
        ["--dataset=range", "--data_dir=data", "--batch_size=2"],
        "labels must be from 0 to 2, but",
    ),
    ("train", ["--dataset=one_class", "--data_dir=data", "--label_noise=0.5"], "one_class has one class, and no other"),
    (
        "train",
        ["--dataset=broken", "--data_dir=data", "--batch_size=2"],
        "--dataset=broken: cannot be read in data/broken",
    ),
    ("train", [*TOY, "--split=train[:3"], "--split=train[:3: must be a split or parts of splits"),
    ("train", [*TOY, "--split=train+test"], "--split=train+test: toy has the splits train"),
    ("train", [*TOY, "--split=train[6:]"], "--split=train[6:]: toy has no examples in it"),
    # where to
    ("train", ["--recording="], "--recording=: must name a directory"),
    ("train", [f"--recording={'x' * 300}"], "cannot be read: File name too long"),
    ("train", ["--recording=back\\slash"], "must be a local path without backslashes"),
    ("train", ["--recording=."], "--recording=.: holds other files and is not a recording"),
    ("train", ["--recording=file"], "--recording=file: exists and is not a directory"),
    ("train", ["--recording=file/below"], "--recording=file/below: cannot be"),
    ("train", ["--recording=foreign"], "--recording=foreign: holds other files and is not a recording"),
    ("train", ["--recording=blocks_alone"], "--recording=blocks_alone: holds other files and is not a recording"),
    ("train", ["--recording=\udcff"], "'--recording=\\\\udcff': must be text in UTF-8"),
    ("train", ["--recording=/proc/nowhere"], "--recording=/proc/nowhere: cannot be written"),
    ("train", ["--recording=good"], "--recording=good: holds a recording of another configuration (--num_examples "),
    ("train", ["--recording=newer"], "newer has format 99, and this version reads formats 4, 5 and 6: use a newer"),
    ("train", ["--recording=edited"], "edited/config.json does not belong to a recording: it was changed after"),
    # analyze
    ("analyze", ["--recording=nowhere"], "nowhere is not a directory"),
    ("analyze", ["--recording=file"], "file is not a directory"),
    ("analyze", ["--recording=foreign"], "foreign is not a recording: it has no config.json"),
    ("analyze", ["--recording=newer"], "newer has format 99, and this version reads formats 4, 5 and 6: use a newer"),
    ("analyze", ["--recording=edited"], "edited/config.json does not belong to a recording: it was changed after"),
    ("analyze", ["--recording=damaged"], "damaged/blocks/3/record.cotangent.fc2 is damaged or missing"),
    ("analyze", ["--recording=unfinished"], "--recording=unfinished: is unfinished and holds 15 of 17 records"),
    ("analyze", ["--recording=alone"], "--recording=alone: has only one example"),
    ("further", ["--recording=alone"], "--recording=alone: has only one example"),
    ("analyze", ["--recording=good", "--score_iteration=17"], "--score_iteration=17: must be a recorded iteration"),
    ("analyze", ["--recording=good", "--score_iteration=x"], "flag --score_iteration=x: must be a whole number"),
    ("analyze", ["--recording=good", "--score_checkpoints=0"], "--score_checkpoints=0: must be 1 or more"),
    (
        "analyze",
        ["--recording=good", "--score_looks=0"],
        "--score_checkpoints=0: must be 1 or more",
    ),  # as it was called
    ("analyze", ["--recording=good", "--output=file"], "--output=file: cannot be written"),
    (
        "analyze",
        ["--recording=good", "--output=foreign"],
        "--output=foreign: holds other files but not",
    ),
    ("analyze", ["--recording=good", "--output=unfinished/analysis"], "is inside another recording, "),
    ("analyze", ["--recording=good", "--output=/proc/x"], "--output=/proc/x: cannot be written"),
    (
        "analyze",
        ["--recording=good", "--export=wandb,mlflow"],
        "--export=mlflow: must be one or more of tensorboard,wandb",
    ),
    ("analyze", ["--recording=good", "--cone_seed=7"], "--cone_seed=7: must be one of the seeds recorded"),
    ("analyze", ["--recording=good", "--cone_cosine=nan"], "--cone_cosine=nan: must be between 0 and 1"),
    ("analyze", ["--recording=good", "--cone_iteration=x"], "flag --cone_iteration=x: must be a whole number"),
    ("analyze", ["--recording=good", "--smallest_group=0"], "--smallest_group=0: must be at least 2"),
    ("analyze", ["--recording=good", "--cone_iteration=17"], "--cone_iteration=17: must be from 0 to 16"),
    ("analyze", ["--recording=good", "--cone_cosine=2"], "--cone_cosine=2.0: must be between 0 and 1"),
    ("analyze", ["--recording=good", "--cone_cover=ring"], "--cone_cover=ring: must be one of clique, star"),
    ("analyze", ["--recording=good", "--opposed_to=all"], "--opposed_to=all: must be centre or members"),
    ("analyze", ["--recording=good", "--contention_checkpoints=0"], "--contention_checkpoints=0: must be 1 or more"),
    ("analyze", ["--recording=good", "--contention_looks=0"], "--contention_checkpoints=0: must be 1 or more"),
    (
        "analyze",
        ["--recording=good", "--parts=cones,film"],
        f"--parts=film: must be one or more of {','.join(PARTS)}, or empty",
    ),
    ("analyze", ["--recording=good", "--outputs=x"], "Unknown command line flag 'outputs'"),
    ("analyze", ["--recording=good,"], "good, names no directory before or after a comma"),
    (
        "explore",
        ["--recording=good", "--no_browser", "--host="],
        "--host=: must be an address of this machine; 0.0.0.0",
    ),
    ("analyze", ["--recording="], "--recording=: must name a directory"),
    ("analyze", [], "recordings/mini_mnist is not a directory"),
    # animate
    ("animate", ["--recording=nowhere", "--output=new.mp4"], "nowhere is not a directory"),
    (
        "animate",
        ["--recording=good", "--output=new.avi"],
        "--output=new.avi: must end in one of .mp4, .gif",
    ),
    ("animate", ["--recording=good", "--output=used.mp4"], "--output=used.mp4: exists"),
    ("animate", ["--recording=good", "--output=no/new.mp4"], "--output=no/new.mp4: there is no directory no"),
    ("animate", ["--recording=good", "--output=new.mp4", "--seed=9"], "--seed=9: was not recorded"),
    ("animate", ["--recording=good", "--output=new.mp4", "--iterations=99"], "--iterations=99: selects none of"),
    (
        "animate",
        ["--recording=damaged", "--output=new.mp4"],
        "damaged/blocks/3/record.cotangent.fc2 is damaged or missing",
    ),
    # verify
    ("verify", ["--recording=nowhere"], "nowhere is not a directory"),
    ("verify", ["--recording=edited"], "edited/config.json does not belong to a recording: it was changed after"),
    ("verify", ["--recording=damaged"], "damaged/blocks/3/record.cotangent.fc2 is damaged or missing"),
    ("verify", ["--recording=unfinished"], "unfinished is unfinished and holds 15 of 17 records"),
    ("verify", ["--recording="], "--recording=: must name a directory"),
    ("verify", ["--recording=good", "--samples=few"], "flag --samples=few: must be a whole number"),
    ("verify", ["good"], "'good' is not a flag; flags look like --recording=DIR"),
    ("verify", ["--recording=good", "--samples=-1"], "--samples=-1: must be 0 or more"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_once, device):
    """A directory with good and bad recordings, data sets and flag files."""
    here = tmp_path_factory.mktemp("place")
    (here / "file").write_text("mine")
    (here / "blocks_alone" / "blocks" / "x").mkdir(parents=True)
    (here / "used.mp4").write_text("mine")
    (here / "foreign").mkdir()
    (here / "foreign" / "letter.txt").write_text("mine")
    (here / "binary.flags").write_bytes(bytes(range(128, 256)))
    (here / "unknown.flags").write_text("--colour=red\n")
    (here / "word.flags").write_text("--epochs=3\nseeds=3\n")
    (here / "bad.flags").write_text("# a comment\n--epochs=0\n")
    (here / "malformed.flags").write_text("--seeds=ten\n")
    for name in ("good", "newer", "edited", "damaged", "unfinished"):
        shutil.copytree(small_once, here / name)
    header = json.loads((here / "newer" / "config.json").read_text())
    (here / "newer" / "config.json").write_text(json.dumps(sealed({**header, "format": 99})))
    (here / "edited" / "config.json").write_text(json.dumps({**header, "num_iterations": 15}))
    file = here / "damaged" / "blocks" / "3" / "record.cotangent.fc2" / "c" / "0" / "0" / "0" / "0"
    file.write_bytes(bytes(9) + file.read_bytes()[9:])
    shutil.rmtree(here / "unfinished" / "blocks" / "15")
    alone = dataclasses.replace(SMALL, num_examples=1, batch_size=1)
    sweep.train(alone, here / "alone", device, log=silent)

    def classes(count):
        return tfds.features.ClassLabel(num_classes=count)

    data, image = here / "data", tfds.features.Image(shape=(4, 4, 1))
    data.mkdir()
    some = [np.full((4, 4, 1), 40 * k, np.uint8) for k in range(6)]
    prepare(data, {"image": image, "label": classes(3)}, [{"image": png(x), "label": 1} for x in some], "toy")
    prepare(data, {"text": tfds.features.Text()}, [{"text": "one"}, {"text": "two"}], "text")
    prepare(data, {"image": image, "label": classes(1)}, [{"image": png(x), "label": 0} for x in some], "one_class")
    cut = [{"image": png(x[: 3 + k % 2]), "label": 0} for k, x in enumerate(some)]
    any_size = tfds.features.Image(shape=(None, None, 1))
    prepare(data, {"image": any_size, "label": classes(3)}, cut, "sizes")
    prepare(data, {"image": image, "label": classes(6)}, [{"image": png(x), "label": 5} for x in some], "range")
    prepare(data, {"image": image, "label": classes(3)}, [{"image": png(x), "label": 1} for x in some], "broken")
    for file in (data / "broken").rglob("*.array_record*"):
        file.write_bytes(b"x" * file.stat().st_size)
    about = data / "range" / "1.0.0" / "features.json"
    assert '"6"' in about.read_text()
    about.write_text(about.read_text().replace('"6"', '"3"'))
    return here


def test_there_are_enough():
    assert len(CASES) >= 60
    assert {module for module, _, _ in CASES} == {"train", "further", "analyze", "animate", "verify", "explore"}


def test_every_mistake_gets_one_clear_line(place):
    before = contents(place)
    unclear = []
    for module, arguments, message in CASES:
        done = run(module, *arguments, cwd=place)
        clear = done.stderr.startswith(f"{module}: ") and message in done.stderr and len(done.stderr.splitlines()) == 1
        # Only reading shows some mistakes.
        reading = done.stdout == "Reading 17 records of 3 seeds in good\n" or "damaged" in message
        if not clear or done.returncode not in (1, 2) or (done.stdout and not reading):
            unclear.append((message, done))
    assert not unclear
    assert contents(place) == before


def test_the_same_as_a_user_types_it(place):
    done = run_anew("train", "--flagfile=bad.flags", cwd=place)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "train: --epochs=0: must be a whole number, 1 or more (in bad.flags)\n"


def test_whoever_stops_reading_gets_no_traceback(place):
    command = f"{sys.executable} -m train_dynamics.verify --recording=good --samples=0 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=place)
    assert done.stderr == ""


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_valid_configuration_records_and_verifies(tmp_path_factory, device, data):
    hidden = data.draw(st.lists(st.integers(1, 6), max_size=3))
    names = [f"fc{k + 1}" for k in range(len(hidden) + 1)]
    num_examples = data.draw(st.integers(1, 12))
    momentum = data.draw(st.sampled_from([0.0, 0.5, 0.9]))
    config = StudyConfig(
        num_examples=num_examples,
        subset_seed=data.draw(st.integers(0, 5)),
        label_noise=data.draw(st.sampled_from([0.0, 0.3, 0.9])),
        hidden_sizes=tuple(hidden),
        layers=tuple(data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))),
        batch_size=data.draw(st.integers(1, num_examples)),
        epochs=data.draw(st.integers(1, 3)),
        num_seeds=data.draw(st.integers(1, 3)),
        first_seed=data.draw(st.integers(0, 1000)),
        learning_rate=data.draw(st.floats(1e-4, 0.1)),
        momentum=momentum,
        nesterov=momentum > 0 and data.draw(st.booleans()),
        record_every=data.draw(st.sampled_from([1, 1, 2, 5])),
        eval_batch_size=data.draw(st.none() | st.integers(1, 5)),
        gradient_layout=data.draw(st.sampled_from(["factored", "dense"])),
    )
    path = tmp_path_factory.mktemp("any") / "recording"
    assert sweep.train(config, path, device, log=silent)
    recording = Recording(path)
    assert recording.finished and recording.config == config
    iterations = -(-num_examples // config.batch_size) * config.epochs
    assert recording.num_records == -(-iterations // config.record_every) + 1
    assert verify(recording, samples=5).problems == []
