import dataclasses
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL, blocks_of, contents, silent
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.datasets import Dataset, standardise
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import replay
from train_dynamics.recording.writer import Writer
from train_dynamics.task.mlp import MLP
from train_dynamics.training import sweep


def record(config: StudyConfig, path, devices) -> Recording:
    sweep.train(config, path, devices, log=silent)
    return Recording(path)


def same_weights(one: dict, other: dict, tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), one, other)


@pytest.mark.parametrize(
    ("seeds", "devices", "rows"),
    [
        (range(4), 2, [[0, 1], [2, 3]]),
        (range(3), 2, [[0, 1], [2, 2]]),
        (range(7, 8), 1, [[7]]),
        (range(5), 4, [[0, 1], [2, 3], [4, 4], [4, 4]]),
    ],
)
def test_seeds_are_assigned_to_devices(seeds, devices, rows):
    np.testing.assert_array_equal(sweep.assign_seeds(seeds, devices), rows)


def test_weights_start_as_flax_draws_them(small):
    model, image = MLP(SMALL.hidden_sizes, len(small.class_names)), jax.numpy.asarray(small.inputs()[:1])
    for s, seed in enumerate(small.seeds):
        drawn = model.init(jax.random.key(int(seed)), image)["params"]
        # Drawn from 0 to 1, stretched to below 1 and moved: float32 rounds by 3e-8 twice, where it is not done at once.
        same_weights(jax.tree.map(lambda array, s=s: array[s], small.parameters(0)), drawn, 6e-8)


def test_a_seed_alone_is_the_same_as_among_others(small, tmp_path, device):
    alone = record(dataclasses.replace(SMALL, first_seed=1, num_seeds=1), tmp_path / "alone", device)
    for t in (0, 1, 4, 16):  # the start, one update, one epoch, the end
        among = jax.tree.map(lambda array: array[1:2], small.parameters(t))
        # The same operations on arrays of another shape: 16 roundings by 6e-8 in either program, of weights below 1.
        same_weights(alone.parameters(t), among, 2e-6)
    # Gradients reach 2.5, where float32 has steps of 2.4e-7; twenty such steps, of sums over 784 pixels.
    np.testing.assert_allclose(alone.gradients("fc2", 4)[0], small.gradients("fc2", 4)[1], rtol=0, atol=5e-6)


@pytest.mark.parametrize("num_devices", [2, 3, 4])
def test_seeds_divide_over_devices_that_do_or_do_not_divide_them(small, tmp_path, num_devices):
    # Three seeds on two devices fill four places, on three three, and the fourth device stays unused.
    spread = record(SMALL, tmp_path / "spread", jax.local_devices()[:num_devices])
    assert spread.seeds.tolist() == [0, 1, 2]
    same_records(spread, small)


def test_examples_divide_over_devices_where_there_are_fewer_seeds(tmp_path, device, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_ITERATIONS", 2)
    # 57 examples on four devices fill 60 places.
    config = dataclasses.replace(SMALL, num_seeds=1, num_examples=57)
    whole = record(config, tmp_path / "whole", device)
    asked = iter([False, True])
    spread = tmp_path / "spread"
    sweep.train(config, spread, jax.local_devices()[:4], log=lambda line: None, stop=lambda: next(asked))
    assert not Recording(spread).finished
    same_records(record(config, spread, jax.local_devices()[:4]), whole)  # goes on from where that stopped


@pytest.mark.parametrize("resumed", [False, True])
def test_the_step_compiles_once(small_dataset, device, resumed):
    swept = sweep.Sweep(SMALL, small_dataset, 3, device)
    state, records = swept.initial_state(), swept.empty_records()
    if resumed:
        state = swept.restored_state(sweep.collect(state, SMALL.num_seeds))
    compiled = []

    def count(event: str, seconds: float, **kwargs: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for start in range(0, 17, 3):
            state, records = swept.run(state, records, start)
        jax.block_until_ready(state)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled  # all of it was, before the first block


@pytest.mark.parametrize("on_cpu", [True, False])
def test_blocks_overlap_and_their_memory_is_used_again(small_dataset, device, monkeypatch, on_cpu):
    swept = sweep.Sweep(SMALL, small_dataset, 3, device)
    monkeypatch.setattr(swept, "_on_cpu", on_cpu)
    done, places, kept = [], [], []
    for owner, name in ((sweep, "collect"), (swept, "run")):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *of, call=call, name=name: done.append(name) or call(*of))
    blocks = swept.blocks(swept.initial_state(), range(0, 15, 3), lambda: done.append("wait"))
    for first, record, state in blocks:
        done.append(first)
        places.append(record["loss"].ctypes.data)
        kept.append(jax.tree.map(np.copy, (record, state)))
        del record
    again = [*(["wait"] if on_cpu else []), "run", "collect"]
    assert done == ["run", *again, 0, *again, 3, *again, 6, *again, 9, "collect", 12]
    if device[0].platform == "cpu":  # from others, records are copied to wherever there is room
        assert places[0] != places[1] and places == [*places[:2] * 2, places[0]]
    monkeypatch.undo()
    state, records = swept.initial_state(), swept.empty_records()
    for k, block in enumerate(kept):
        state, records = swept.run(state, records, 3 * k)
        jax.tree.map(np.testing.assert_array_equal, block, sweep.collect((records, state), SMALL.num_seeds))


ROWS = np.arange(32_769, dtype=np.float32)[:, None] * np.eye(3, dtype=np.float32)[0]


def sums_of_squares(x: jax.Array) -> jax.Array:
    """The product that jaxlib 0.10.2 gets wrong if left alone (jax-ml/jax#39103)."""
    return jax.vmap(lambda row: jnp.sum(jnp.matmul(jnp.eye(3), row, precision="highest") ** 2))(x)


def test_programs_are_compiled_to_give_right_results():
    found = sweep.compiled(jax.jit(sums_of_squares).lower(ROWS), "cpu")(ROWS)
    np.testing.assert_array_equal(found, ROWS[:, 0] ** 2)


def test_xla_may_not_know_our_options(monkeypatch):
    of_others = {"xla_cpu_of_another_version": "", "xla_cpu_of_another": True}
    program = jax.jit(sums_of_squares).lower(ROWS)
    asked, compile_ = [], jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, o: asked.append(dict(o)) or compile_(self, o))
    sweep.compiled(program, "cpu")
    known, tried = asked[-1], len(asked)
    assert known.items() <= sweep.OPTIONS["cpu"].items() and "xla_cpu_prefer_vector_width" in known
    monkeypatch.setitem(sweep.OPTIONS, "cpu", {**of_others, **sweep.OPTIONS["cpu"]})
    found = sweep.compiled(program, "cpu")(ROWS)
    np.testing.assert_array_equal(found, ROWS[:, 0] ** 2)
    assert asked[-1] == known and len(asked) == 2 * tried + len(of_others)
    sweep.compiled(program, "cpu", once=True)
    assert known.items() < asked[-1].items() and asked[-1]["xla_backend_optimization_level"] == 1
    sweep.compiled(program, "another")
    assert asked[-1] == {}
    sweep.compiled(program, "gpu")  # here too, XLA knows the options of GPUs
    assert asked[-1] == {"xla_gpu_deterministic_ops": True}
    monkeypatch.setitem(sweep.OPTIONS, "another", {"xla_backend_optimization_level": "no number"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no number"):
        sweep.compiled(program, "another")


@pytest.mark.parametrize("num_examples", [32_769, 40_001])
def test_records_of_many_examples_are_right_to_the_last(num_examples, device, rng, optimised):
    images = rng.integers(0, 256, (num_examples, 3, 3, 1), np.uint8)
    labels = rng.integers(0, 3, num_examples, np.int32)
    dataset = Dataset(images, labels, np.arange(num_examples), ("a", "b", "c"))
    config = dataclasses.replace(SMALL, num_seeds=2, num_examples=num_examples, hidden_sizes=(4,))
    swept = sweep.Sweep(config, dataset, 2, device)
    _, records = swept.run(swept.initial_state(), swept.empty_records(), 0)
    found = sweep.collect(records, config.num_seeds)
    inputs = standardise(images, config.pixel_mean, config.pixel_std)
    for s in range(config.num_seeds):
        again = replay(jax.tree.map(lambda array, s=s: array[s, 1], found["parameters"]), inputs, labels)
        # Losses and gradients are below 3, where float32 has steps of 2.4e-7; twenty such steps.
        np.testing.assert_allclose(found["loss"][s, 1], again.loss, rtol=0, atol=5e-6)
        gradient = found["activation"]["fc2"][s, 1, :, :, None] * found["cotangent"]["fc2"][s, 1, :, None]
        np.testing.assert_allclose(gradient, again.gradients["fc2"], rtol=0, atol=5e-6)


def test_plan_divides_evenly_and_is_bounded(small_dataset, monkeypatch):
    plan = sweep.plan(SMALL, small_dataset)
    assert plan.iterations.tolist() == list(range(17))
    weights = 784 * 5 + 5 + 5 * 10 + 10
    per_example = 4 + 1 + 4 * (5 + 10)  # loss, prediction, activation and cotangent of fc2
    assert plan.record_bytes == 3 * (4 * weights + 50 * per_example)
    assert plan.state_bytes == 3 * 4 * weights
    assert plan.bytes_from(10) == 7 * plan.record_bytes + plan.state_bytes
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 5 * plan.record_bytes)
    assert sweep.plan(SMALL, small_dataset).block_length == 5  # 17 records in four blocks of at most 5
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1)
    assert sweep.plan(SMALL, small_dataset).block_length == 1


@pytest.fixture
def blocks_of_three(small_dataset):
    with blocks_of(3, small_dataset):
        yield


def same_records(one: Recording, other: Recording) -> None:
    """Every record alike, to rounding: of weights below 1 in 16 updates, and of losses and gradients below 10."""
    for t in range(17):
        same_weights(one.parameters(t), other.parameters(t), 2e-6)
        np.testing.assert_allclose(one.loss(t), other.loss(t), rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.gradients("fc2", t), other.gradients("fc2", t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, momentum=0.9, nesterov=True)], ids=["sgd", "nag"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, device, monkeypatch, blocks_of_three, optimised, config):
    whole = record(config, tmp_path / "whole", device)
    save, saved = Writer.save, []

    def interrupted(self, start, *args):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(start)
        save(self, start, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(config, tmp_path / "parts", device)
    assert Recording(tmp_path / "parts").num_records == 6
    lines = []
    sweep.train(config, tmp_path / "parts", device, log=lines.append)
    assert "Continuing from iteration 6" in lines
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert len(one) > 20
    assert one == other
    assert whole.finished


def test_examples_that_are_read_already_are_not_read_again(tmp_path, device, small_dataset, monkeypatch):
    monkeypatch.setattr(sweep, "load_dataset", None)
    sweep.train(SMALL, tmp_path / "given", device, log=silent, stop=lambda: True, dataset=small_dataset)
    given = Recording(tmp_path / "given")
    np.testing.assert_array_equal(given.images, small_dataset.images)
    other = dataclasses.replace(small_dataset, inputs=255 - small_dataset.images)
    sweep.train(SMALL, tmp_path / "given", device, log=silent, dataset=other)  # it has its own
    np.testing.assert_array_equal(Recording(tmp_path / "given").images, small_dataset.images)
    assert Recording(tmp_path / "given").finished


def test_label_noise_is_recorded_and_known_after_an_interruption(tmp_path, device, small_dataset, blocks_of_three):
    config = dataclasses.replace(SMALL, label_noise=0.2)
    path = tmp_path / "noisy"
    sweep.train(config, path, device, log=silent, stop=lambda: True)
    assert Recording(path).num_records == 3
    sweep.train(config, path, device, log=silent)
    recording = Recording(path)
    assert recording.finished and recording.noisy.sum() == 10 and recording.noisy.dtype == bool
    np.testing.assert_array_equal(recording.true_labels, small_dataset.labels)
    np.testing.assert_array_equal(recording.labels != small_dataset.labels, recording.noisy)
    p = recording.probabilities(0)  # the labels trained on are those that the gradients are of
    of_label = np.take_along_axis(p, recording.labels[None, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(recording.loss(0), -np.log(of_label), rtol=1e-5)  # float32


def test_without_label_noise_no_file_tells_of_it(small):
    assert not small.noisy.any()
    np.testing.assert_array_equal(small.true_labels, small.labels)
    assert {file.name for file in (small.path / "dataset").iterdir()} == {"images.npy", "labels.npy", "ids.npy"}


def test_block_length_changes_no_record(small, tmp_path, device):
    other = record(SMALL, tmp_path / "other", device)
    assert len(list(other.blocks())) == 1
    assert len(list(small.blocks())) == 6
    same_records(other, small)


def test_a_finished_recording_is_left_alone(small_path, device):
    before = contents(small_path)
    times = {file: file.stat().st_mtime_ns for file in small_path.rglob("*")}
    lines = []
    sweep.train(SMALL, small_path, device, log=lines.append)
    assert lines == [f"{small_path} already holds all 17 records of 3 seeds; nothing to do"]
    assert contents(small_path) == before
    assert {file: file.stat().st_mtime_ns for file in small_path.rglob("*")} == times


def test_another_configuration_is_refused_by_the_differing_flags(small_path, device):
    before = contents(small_path)
    with pytest.raises(InputError) as error:
        sweep.train(dataclasses.replace(SMALL, epochs=5, num_seeds=2), small_path, device, log=silent)
    assert "--epochs 4 instead of 5" in str(error.value) or "--epochs 5 instead of 4" in str(error.value)
    assert "--seeds" in str(error.value) and "--momentum" not in str(error.value)
    assert contents(small_path) == before


def test_too_little_room_is_told_before_the_start(tmp_path, device, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(sweep.shutil, "disk_usage", lambda _: usage(10**6, 3 * 10**5, 7 * 10**5))
    with pytest.raises(InputError, match=r"--recording=.*needs 1\.0 MB, but only 700\.0 kB are free") as error:
        sweep.train(SMALL, tmp_path / "full", device, log=silent)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "full").exists()


def test_a_save_that_fails_ends_the_run(tmp_path, device, monkeypatch, blocks_of_three):
    real = Writer.save

    def broken(self, start, record, state):
        if start == 6:
            (self.path / "blocks" / "6").mkdir()  # what Orbax may not replace
        real(self, start, record, state)

    monkeypatch.setattr(Writer, "save", broken)
    with pytest.raises(ValueError, match="already exists"):
        record(SMALL, tmp_path / "broken", device)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (".", "was moved or removed during recording"),
        ("blocks/0", "was moved or removed during recording"),
        ("config.json", "was moved or removed during recording"),
        ("blocks", "was moved or removed during recording"),
    ],
)
def test_a_recording_that_is_moved_while_it_is_written_is_not_called_recorded(
    tmp_path, device, blocks_of_three, what, message
):
    lines, threads = [], set(threading.enumerate())

    def stop():
        if (tmp_path / "out" / "blocks" / "0").exists():
            (tmp_path / "out" / what).rename(tmp_path / "elsewhere")
            if what == "blocks":
                (tmp_path / "out" / "blocks").write_text("no directory")
        return False

    with pytest.raises(RecordingError, match=message):
        sweep.train(SMALL, tmp_path / "out", device, log=lines.append, stop=stop)
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:  # a program that imports us could not end before
            thread.join(timeout=120)  # those of asyncio, told to end and not waited for, do so as soon as they run
            assert not thread.is_alive()
    assert not any(line.startswith("Recorded") for line in lines)
    assert not (tmp_path / "out" / "blocks" / "12").exists()  # at once, and not after all was computed


def test_a_skipped_save_is_a_failed_recording(tmp_path, device, monkeypatch, blocks_of_three):
    from orbax.checkpoint import AsyncCheckpointer

    monkeypatch.setattr(AsyncCheckpointer, "save", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="was not written"):
        record(SMALL, tmp_path / "skipped", device)


def test_what_came_before_a_loss_that_is_no_longer_finite_stays(tmp_path, device, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_ITERATIONS", 1)  # so that blocks are epochs, of ten updates
    config = StudyConfig(
        num_examples=50, batch_size=5, epochs=30, num_seeds=3, learning_rate=8.0, hidden_sizes=(20, 20)
    )
    with pytest.raises(InputError, match="the loss of seed 1 is no longer finite at iteration") as error:
        sweep.train(config, tmp_path / "out", device, log=silent)
    found = re.search(r"at iteration (\d+); what was recorded before iteration (\d+) stays", str(error.value))
    assert str(error.value).endswith("a lower --learning_rate may help, into another directory")
    kept = Recording(tmp_path / "out")
    assert 0 < kept.num_records == int(found[2]) <= int(found[1]) < kept.num_records + kept.block_length
    assert all(np.isfinite(kept.loss(t)).all() for t in range(kept.num_records))


def test_too_little_memory_is_one_line_and_other_failures_are_not_hidden(tmp_path, device, monkeypatch):
    def fail(words):
        def run(self, *arguments):
            raise jax.errors.JaxRuntimeError(words)

        monkeypatch.setattr(sweep.Sweep, "run", run)
        sweep.train(SMALL, tmp_path / "out", device, log=silent)

    with pytest.raises(
        InputError, match=r"not enough memory .*Out of memory allocating 9 bytes.*; fewer --seeds"
    ) as error:
        fail("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nand more")
    assert "\n" not in str(error.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fail("INTERNAL: a failure of ours")
