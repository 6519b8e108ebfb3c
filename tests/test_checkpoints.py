"""Recordings from checkpoints, in every format that people save."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from safetensors.numpy import save_file

import train_dynamics as td
from tests.conftest import run, silent
from tests.test_recorder import N, examples, loss, recorded, start, stepped  # noqa: F401
from train_dynamics.gradients.parameters import named

ITERATIONS = (0, 5, 20)


def saved(directory, kind):
    """Save the loop of the recorder's tests, as people do."""
    params, found = start(), {}
    for t in range(21):
        if t in ITERATIONS:
            found[t] = params
            path = directory / f"step_{t}"
            flat = {name: np.asarray(leaf) for name, leaf in named(params).items()}
            if kind == "orbax":
                with ocp.PyTreeCheckpointer() as checkpointer:
                    checkpointer.save(path, {"params": params, "step": t})
            elif kind == "npz":
                np.savez(path, **flat)
            elif kind == "safetensors":
                save_file({name.replace("/", "."): leaf for name, leaf in flat.items()}, f"{path}.safetensors")
            else:
                path.with_suffix(".msgpack").write_bytes(serialization.to_bytes({"params": params}))
        params = stepped(params, t)
    return found


def test_bfloat16_comes_back_from_npz(tmp_path, examples):  # noqa: F811
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    np.savez(tmp_path / "step_3", **{name: np.asarray(leaf) for name, leaf in named(half).items()})
    recording = td.record_checkpoints(loss, examples, tmp_path / "step_*", tmp_path / "out", log=silent)
    np.testing.assert_array_equal(recording.parameters(3)["head"]["kernel"][0], half["head"]["kernel"])


def test_a_state_of_nnx_is_fitted(tmp_path, examples):  # noqa: F811
    variables = nnx.State(jax.tree.map(nnx.Param, start()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step_4", variables)
    recording = td.record_checkpoints(
        loss, examples, tmp_path / "step_*", tmp_path / "out", like=start(), layers="head/*", log=silent
    )
    np.testing.assert_array_equal(recording.parameters(4)["head"]["kernel"][0], start()["head"]["kernel"])


def test_the_one_item_of_a_checkpoint_manager_is_found(tmp_path, examples):  # noqa: F811
    for name, items in (("one", ["weights"]), ("two", ["weights", "others"])):
        with ocp.CheckpointManager(tmp_path / name) as manager:
            manager.save(7, args=ocp.args.Composite(**{item: ocp.args.StandardSave(start()) for item in items}))
    recording = td.record_checkpoints(loss, examples, tmp_path / "one" / "*", tmp_path / "out", log=silent)
    assert recording.iterations.tolist() == [7]
    with pytest.raises(td.InputError, match=r"no checkpoint in this directory, but several in it: others, weights$"):
        td.record_checkpoints(loss, examples, tmp_path / "two" / "*", tmp_path / "none", log=silent)


@pytest.mark.parametrize("kind", ["orbax", "npz", "safetensors", "msgpack"])
def test_every_format_gives_what_the_loop_would_have(tmp_path, examples, kind):  # noqa: F811
    (tmp_path / "run").mkdir()
    params = saved(tmp_path / "run", kind)
    like = start() if kind == "orbax" else None
    recording = td.record_checkpoints(
        loss, examples, tmp_path / "run" / "step_*", tmp_path / "out", like=like, seed=3, log=silent
    )
    assert recording.iterations.tolist() == list(ITERATIONS) and recording.seeds.tolist() == [3]
    expected, _ = recorded(tmp_path / "loop", examples, range(21), when=lambda t: t in ITERATIONS)
    for t in ITERATIONS:
        np.testing.assert_array_equal(recording.parameters(t)["head"]["bias"][0], params[t]["head"]["bias"])
        np.testing.assert_array_equal(recording.loss(t), expected.loss(t))
        for layer in expected.layers:
            np.testing.assert_array_equal(recording.gradients(layer, t), expected.gradients(layer, t))


def test_a_loader_of_ones_own(tmp_path, examples):  # noqa: F811
    pairs = ((t, jax.tree.map(lambda leaf, t=t: leaf * t, start())) for t in (1, 2))
    recording = td.record_checkpoints(loss, examples, pairs, tmp_path / "out", log=silent)
    assert recording.iterations.tolist() == [1, 2]


NETWORK = """
from flax import linen as nn

class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x.reshape(len(x), -1))
        return nn.Dense(10, name="head")(x)

network = Network()
"""


def test_the_command_records_what_training_recorded(tmp_path):
    (tmp_path / "networks.py").write_text(NETWORK)
    flags = ["--model=networks.py:network", "--num_examples=40", "--layers=head/kernel", "--batch_size=20"]
    more = ["--epochs=3", "--seeds=1", "--first_seed=4", "--learning_rate=0.1", "--recording=trained"]
    done = run("train", *flags, *more, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    trained = td.Recording(tmp_path / "trained")
    (tmp_path / "kept").mkdir()
    for t in (0, 2, 6):
        params, variables = (
            {name: leaf[0] for name, leaf in named(of(t)).items()} for of in (trained.parameters, trained.variables)
        )
        weights = {f"params/{name}": leaf for name, leaf in params.items()}
        np.savez(tmp_path / "kept" / f"epoch1-{t}-of-6.npz", **weights, **variables)
    command = [*flags, "--checkpoints=kept/*.npz", "--recording=out", "--seed=4"]
    done = run("record", *command, cwd=tmp_path)
    assert done.returncode == 1 and "is of iteration 6, and so is" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run("record", *command, r"--iteration_pattern=-(\d+)-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "Recorded 3 iterations into out" in done.stdout
    recording = td.Recording(tmp_path / "out")
    np.testing.assert_array_equal(recording.images, trained.images)
    for t in (0, 2, 6):
        np.testing.assert_allclose(recording.loss(t), trained.loss(t), rtol=1e-5)
        # Sums over 784 inputs in another order: some sqrt(784) eps of the largest.
        expected = trained.gradients("head/kernel", t)
        size = np.abs(expected).max()
        np.testing.assert_allclose(recording.gradients("head/kernel", t), expected, rtol=1e-4, atol=1e-5 * size)


def test_the_command_records_the_network_of_the_page(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "LOOPS.md").read_text()
    (program,) = re.findall(r"```python\n(from flax import linen as nn\n\ncnn = .*?)```", page, re.S)
    (tmp_path / "nets.py").write_text(program)
    exec(program, names := {})
    inputs = np.random.default_rng(0).normal(size=(N, 6, 6, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(N) % 10)
    params = names["cnn"].init(jax.random.key(0), inputs)
    (tmp_path / "runs/3").mkdir(parents=True)
    for t in (0, 10):
        np.savez(tmp_path / f"runs/3/step_{t}.npz", **{name: leaf * (1 + t) for name, leaf in named(params).items()})
    (command,) = re.findall(r"-m train_dynamics\.record (.*?)```", page, re.S)
    done = run("record", *shlex.split(command.replace("\\\n", "")), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    recording = td.Recording(tmp_path / "recordings/run3")
    assert recording.iterations.tolist() == [0, 10] and "layers_3/kernel" in recording.layers
    logits = names["cnn"].apply(params, inputs)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, np.arange(N) % 10)
    np.testing.assert_allclose(recording.loss(0)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ((), None, "there is no such file or directory"),
        (("last",), None, "its name has no iteration that iteration_pattern="),
        (("a1", "b1"), None, "is of iteration 1, and so is"),
        (("a1",), "(", "is not a regular expression"),
        (("a1",), "a", "must have one group"),
        (("a1",), None, "has no head/kernel; it has body/kernel"),
    ],
)
def test_mistakes_get_a_line(tmp_path, examples, names, pattern, message):  # noqa: F811
    for name in names:
        np.savez(tmp_path / name, **{"body/kernel": np.zeros((5, 4), np.float32), "head/bias": np.zeros(3)})
    options = {} if pattern is None else {"iteration_pattern": pattern}
    with pytest.raises(td.InputError) as error:
        td.record_checkpoints(loss, examples, tmp_path / "*.npz", tmp_path / "out", like=start(), log=silent, **options)
    assert message in str(error.value) and "\n" not in str(error.value) and "--" not in str(error.value)
    assert not (tmp_path / "out").exists()


SOME = {"body": {"kernel": np.ones((5, 4), np.float32)}, "head": {"bias": np.ones(3, np.float32)}}
PAIRS = r"^checkpoints must be a pattern like runs/3/step_\*, a list of files, or pairs \(iteration, params\), and "


@pytest.mark.parametrize(
    ("checkpoints", "options", "message"),
    [
        (None, {}, PAIRS + "is a NoneType"),
        ({"a": 1}, {}, PAIRS + "is a dict"),
        ([], {}, PAIRS + "is empty"),
        ([SOME], {}, PAIRS + "one of them is a dict"),
        ([("a", SOME)], {}, PAIRS + "one of them is a tuple"),
        ([(5, SOME), (3, SOME)], {}, "^checkpoints: iteration 3 comes after iteration 5"),
        (
            [(0, SOME), (2, {"body": SOME["body"]})],
            {},
            "^checkpoints: iteration 2: not the network of iteration 0: ",
        ),
        ([(0, {"body": [1.0, 2.0]})], {}, "^checkpoints: iteration 0: params hold no floating-point array"),
        (
            [(0, SOME), (2, SOME)],
            {"when": lambda t: t > 9},
            "selects none of the checkpoints, which are at iterations 0 to 2$",
        ),
        ("*", {"like": {"body": 1.0}}, "^like must hold arrays or their shapes, and holds a float$"),
    ],
)
def test_what_is_no_checkpoint_gets_a_line(tmp_path, monkeypatch, examples, checkpoints, options, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a1").touch()
    with pytest.raises(td.InputError, match=message):
        td.record_checkpoints(loss, examples, checkpoints, "out", log=silent, **options)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoints_get_a_line(tmp_path, examples):  # noqa: F811
    (tmp_path / "1.pt").write_bytes(b"PK")
    (tmp_path / "2.npz").write_bytes(b"garbage")
    np.savez(tmp_path / "3.npz", a=np.array([None], object))
    np.savez(tmp_path / "7.npz", w=np.ones(3), kind=np.array("cnn"))
    (tmp_path / "4").mkdir()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "5", {"body": {"kernel": [1.0, 2.0]}})
        checkpointer.save(tmp_path / "6", start())
    for name, like, message in (
        ("1.pt", None, "must be an Orbax directory, or a file .npz, .safetensors, .msgpack"),
        ("2.npz", None, "it is not an .npz file, or holds Python objects"),
        ("3.npz", None, "it is not an .npz file, or holds Python objects"),
        ("7.npz", None, "has text as kind; use like= to choose which arrays to read"),
        ("4", None, "Orbax finds no checkpoint in this directory"),
        ("5", None, "has a list of numbers as body/kernel; it must be an array"),
        ("6", (start(), {}), "has nothing of the network, as 0/body/kernel; it has body/kernel, head/bias"),
    ):
        with pytest.raises(td.InputError) as error:
            td.record_checkpoints(loss, examples, tmp_path / name, tmp_path / "out", like=like, log=silent)
        assert message in str(error.value) and str(error.value).startswith(f"checkpoints={tmp_path / name}: ")
        assert "\n" not in str(error.value) and "pickle" not in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_like", [False, True])
def test_a_checkpoint_of_another_network_is_found_before_anything_is_written(tmp_path, examples, has_like):  # noqa: F811
    saved(tmp_path, "npz")
    other = {name: np.asarray(leaf) for name, leaf in named(start()).items()} | {"head/kernel": np.ones((4, 7))}
    np.savez(tmp_path / "step_5.npz", **other)
    like = start() if has_like else None
    with pytest.raises(td.InputError) as error:
        td.record_checkpoints(loss, examples, tmp_path / "step_*", tmp_path / "out", like=like, log=silent)
    assert str(error.value).startswith(f"checkpoints={tmp_path / 'step_5.npz'}: ") and "head/kernel" in str(error.value)
    assert "[4, 3]" in str(error.value) and "[4, 7]" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_set_that_is_shown_otherwise(tmp_path, examples):  # noqa: F811
    raw = td.Dataset(np.arange(N * 4, dtype=np.uint8).reshape(N, 2, 2), examples[1], class_names=["a", "b", "c"])
    recording, _ = recorded(tmp_path / "out", examples, range(2), dataset=raw)
    assert recording.class_names == ("a", "b", "c") and recording.images.shape == (N, 2, 2, 1)
    fewer = dataclasses.replace(raw, inputs=raw.inputs[:3], labels=raw.labels[:3], ids=raw.ids[:3])
    with pytest.raises(td.InputError, match="dataset has 3 examples, and examples has 12"):
        recorded(tmp_path / "other", examples, range(2), dataset=fewer)
