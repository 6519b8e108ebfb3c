"""Checks that a recording is correct: compares every checksum, and computes a sample again from weights and inputs."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.recording.contents import KeptLayer
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.layers import TOGETHER, rebuild
from train_dynamics.recording.reader import Block, Recording
from train_dynamics.recording.sketch import sketch_of

TOLERANCE = 1e-4  # a hundred times what float32 leaves; products in TF32 or a lost layer leave ten times as much
EXAMPLES = 64
GRADIENT_BYTES = 2**28  # of the gradients of these, in float64
UNDECIDED = 1e-5
FAINT = 1e-3  # of the gradient of all: what is less in all examples, as of a key's bias, is rounded as all are


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of checking a recording.

    Attributes:
        problems: What is wrong, one line each. Empty if nothing is.
        num_bytes: Bytes of the blocks whose checksums were compared.
        num_compared: Number of gradients computed again, each of one example at one iteration.
        errors: For the loss, the outputs (if stored), and what is stored of each layer's gradients: the largest
            difference between stored and newly computed values. It is divided by the largest value, or by a thousandth
            of the largest value over all parameters' gradients if that is more. For the prediction: 0 or 1.
        num_undecided: Number of gradients left out because rounding decides them.
    """

    problems: list[str]
    num_bytes: int
    num_compared: int
    errors: dict[str, float]
    num_undecided: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """An evaluation, run again in float64.

    Attributes:
        logits: Outputs of the network; for a classifier the logits. Without meaning if outputs are not stored.
        loss: Loss of each example; for the default network the cross-entropy, in nats.
        gradients: Gradient of the loss with respect to each parameter, for each example.
        clearance: Smallest distance of an example's hidden units from their kinks, divided by the largest input of a
            unit in the same layer.
    """

    logits: Float[np.ndarray, "k ..."]
    loss: Float[np.ndarray, " k"]
    gradients: dict[str, Float[np.ndarray, "k ..."]]
    clearance: Float[np.ndarray, " k"]


@runtime_checkable
class Networks(Protocol):
    """A recording's trained networks, run again: see `train_dynamics.training.replay.Networks`."""

    def again(self, s: int, t: int, examples: Int[np.ndarray, " k"]) -> Replay:
        """Evaluate some examples with the network of seed number `s` after `t` updates.

        Gradients are named by the parameter's path, such as `fc1/kernel`, and cover all parameters.
        """


def verify(
    recording: Recording,
    samples: int,
    seed: int = 0,
    progress: Callable[[Block], object] = lambda block: None,
    networks: Networks | None = None,
) -> Verification:
    """Check that everything exists, compare every checksum, and compute a random sample again in float64.

    The sample is computed from stored weights and inputs: for the default network by the chain rule, written out; for
    any other by `networks`. Without `networks` it is left out, because it would run the user's code. Compared are
    losses, outputs, predictions, and every recorded layer's gradients, norms or sketches, but not products with the
    mean gradient. Values that rounding decides are left out: predictions whose two largest logits are nearly equal, and
    gradients of examples that sit at the kink of a unit.

    Args:
        recording: The recording.
        samples: Number of (seed, iteration) pairs to draw, and up to 64 examples for each. The last iteration is always
            among them. Networks with a million parameters or more get fewer, to save memory.
        seed: Seed for drawing the sample.
        progress: Called after each block.
        networks: Runs the networks again. Not needed for the default network.

    Example:
        >>> verify(Recording("recordings/mini_mnist"), samples=100).problems
        []
    """
    problems = []
    if not recording.finished:
        state = "is still being written" if recording.being_written else "is unfinished"
        there, planned = recording.num_records, recording.num_planned
        problems.append(f"{recording.path} {state} and holds {there} of {planned} records")
    elif not recording.num_records:  # of a loop, of which nobody knows how many there should be
        problems.append(f"{recording.path} holds no records: the loop ended before its first block was stored")
    problems += [problem for part in recording.parts for problem in part.data_problems]
    try:
        _ = recording.further
    except RecordingError as error:
        problems.append(str(error))
    num_bytes, blocks = 0, [block for part in recording.parts for block in part.blocks()]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
        checks = threads.map(lambda block: _check_block(block, recording.of_loop), blocks)
        for block, (found, size) in zip(blocks, checks, strict=True):
            problems += found
            num_bytes += size
            progress(block)
    if networks is None and recording.replayable:
        networks = DefaultNetworks(recording)
    if problems or not samples or not recording.num_records or networks is None:
        return Verification(problems, num_bytes, 0, {})
    compared, undecided, errors = _compare(recording, networks, samples, np.random.default_rng(seed))
    for name, (error, s, t) in errors.items():
        if not error <= TOLERANCE:
            problems.append(
                f"{recording.path}: the {name} of seed {recording.seeds[s]} at iteration {t} is not what weights and "
                f"inputs give, by {error:.1e} of its largest value; up to {TOLERANCE:.0e} would be rounding"
            )
    errors = {name: error for name, (error, _, _) in errors.items()}
    return Verification(problems, num_bytes, compared, errors, undecided)


def _check_block(block: Block, of_loop: bool) -> tuple[list[str], int]:
    """Read everything in a block, which compares its checksums, and check that training can continue from it."""
    problems, size = [], 0
    states = set()
    with contextlib.suppress(OSError):  # not every server lists
        names = [path.name for path in block.path.iterdir()]
        states = {name.removeprefix("state.") for name in names if name.startswith("state.")}
    states |= {name for name in block.names if name.startswith("parameters.") and not of_loop}
    reads = [(block.each, name) for name in block.names]
    reads += [(block.state, name) for name in sorted(states)]
    for read, name in reads:
        try:
            size += sum(row.nbytes for row in read(name))
        except RecordingError as error:
            problems.append(str(error))
    if not of_loop and not (block.path / "_METADATA").is_file():
        problems.append(f"{block.path / '_METADATA'} is missing; without it, training cannot continue from this block")
    return problems, size


def _compare(
    recording: Recording, networks: Networks, samples: int, rng: np.random.Generator
) -> tuple[int, int, dict[str, tuple]]:
    """Compute a sample again, and find the largest relative error of each kind, with its seed and iteration."""
    compared, undecided = 0, 0
    largest: dict[str, float] = {}
    worst: dict[str, tuple[float, int, int]] = {}
    total = recording.num_records * len(recording.seeds)
    num_layers = len(set(recording.layers) - {TOGETHER})
    most = min(EXAMPLES, max(1, GRADIENT_BYTES // (8 * _num_parameters(recording))))
    for pair in np.sort(rng.choice(total, min(samples, total), replace=False)).tolist():
        record, s = divmod(pair, len(recording.seeds))
        t = int(recording.iterations[record])
        # The last one always: a compiler that divides the examples wrongly among its loops gets those wrong.
        last = len(recording.labels) - 1
        examples = np.append(np.sort(rng.choice(last, min(most - 1, last), replace=False)), last)
        again = networks.again(s, t, examples)
        compared += len(examples) * num_layers
        undecided += int(np.count_nonzero(again.clearance <= UNDECIDED)) * num_layers
        for name, stored, expected, least in _both(recording, s, t, examples, again):
            difference = float(np.nan_to_num(np.abs(stored - expected), nan=np.inf).max(initial=0))
            worst[name] = max(worst.get(name, (-1.0, 0, 0)), (difference, s, t))
            largest[name] = max(largest.get(name, 1e-30), float(np.abs(expected).max(initial=least)))
    return compared, undecided, {name: (difference / largest[name], s, t) for name, (difference, s, t) in worst.items()}


def _num_parameters(recording: Recording) -> int:
    first = next(recording.blocks())
    start = int(first.iterations[0])
    return sum(first.read(f"parameters.{name}", start)[0].size for name in recording.contents.parameters)


def _both(
    recording: Recording, s: int, t: int, examples: Int[np.ndarray, " k"], again: Replay
) -> Iterator[tuple[str, Float[np.ndarray, "..."], Float[np.ndarray, "..."], float]]:
    """Return stored and newly computed values of some examples, and the smallest scale to compare them by."""
    yield "loss", recording.loss(t)[s, examples], again.loss, 0.0
    if recording.contents.outputs and not recording.contents.output_layer:
        yield "outputs", recording.outputs(t)[s, examples], again.logits, 0.0
    if recording.contents.classes:
        # One class has nothing to lead.
        lead = np.diff(np.sort(again.logits, axis=1)[:, -2:]).min(axis=1, initial=np.inf)
        decided = lead > UNDECIDED * np.abs(again.logits).max()
        stored = recording.predictions(t)[s, examples]
        same = np.float64(stored == again.logits.argmax(axis=1))[decided]
        yield "prediction", same, np.ones(np.count_nonzero(decided)), 0.0
    clear = again.clearance > UNDECIDED
    entry = max(float(np.abs(gradient).max(initial=0)) for gradient in again.gradients.values())
    square = float(_squares(again.gradients.values()).max(initial=0))
    for kept in recording.contents.layers.values():
        stored, expected = _stored(recording, kept, s, t, examples), _kept_of(recording, kept, again)
        least = FAINT * (square if kept.layout == "measures" else entry)
        yield f"{_KINDS[kept.layout]} of {kept.name}", stored[clear], expected[clear], least


_KINDS = {"factored": "gradient", "dense": "gradient", "sketch": "sketch", "measures": "squared norm"}


def _stored(
    recording: Recording, kept: KeptLayer, s: int, t: int, examples: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "k ..."]:
    """Read what is stored of some examples' gradients at a layer."""
    if kept.layout == "dense":
        return recording.gradients(kept.name, t)[s, examples]
    if kept.layout == "sketch":
        return recording.vectors(kept.name, t)[0][s, examples]
    if kept.layout == "measures":
        # From products of factors, near 0 the root of what rounding leaves is large, and the square is not.
        return np.square(recording.measures(kept.name, t)[0][s, examples], dtype=np.float64)
    activation, cotangent = recording.factors(kept.name, t)
    activation, cotangent = activation[s % len(activation), examples], cotangent[s, examples]
    if kept.layer.factors is None:
        return activation[:, :, None] * cotangent[:, None, :]
    return rebuild(kept.layer, activation, cotangent)


def _kept_of(recording: Recording, kept: KeptLayer, again: Replay) -> Float[np.ndarray, "k ..."]:
    """Compute the same from gradients that were computed again."""
    if kept.layout == "measures":
        names = again.gradients if kept.layer.name == TOGETHER else [kept.layer.name]
        return _squares(again.gradients[name] for name in names)
    gradients = again.gradients[kept.layer.name]
    if kept.layout != "sketch":
        return gradients
    size = recording.config.sketch_size
    return np.array([sketch_of(kept.layer, size, gradient) for gradient in gradients])


def _squares(gradients: Iterable[Float[np.ndarray, "k ..."]]) -> Float[np.ndarray, " k"]:
    """Compute the squared norm of each example's gradients, together."""
    return sum(np.square(gradient).reshape(len(gradient), -1).sum(axis=1) for gradient in gradients)


class DefaultNetworks:
    """The default network with its default loss, run again in NumPy.

    Args:
        recording: A recording of it.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def again(self, s: int, t: int, examples: Int[np.ndarray, " k"]) -> Replay:
        """Evaluate some examples with the network of seed number `s` after `t` updates."""
        layers = self._recording.parameters(t)
        weights = {name: {part: value[s] for part, value in of.items()} for name, of in layers.items()}
        found = replay(weights, self._recording.inputs()[examples], self._recording.labels[examples])
        by_path = {name if "/" in name else f"{name}/kernel": value for name, value in found.gradients.items()}
        return dataclasses.replace(found, gradients=by_path)


def replay(
    weights: dict[str, dict[str, np.ndarray]], images: Float[np.ndarray, "k ..."], labels: Int[np.ndarray, " k"]
) -> Replay:
    """Run a ReLU network on some examples, and compute its gradients by the chain rule, written out.

    Example:
        >>> weights = {"fc1": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}}
        >>> replay(weights, np.array([[1.0, 2.0]]), np.array([0])).gradients["fc1"]
        array([[[-0.5,  0.5],
                [-1. ,  1. ]]])
    """
    names = sorted(weights, key=lambda name: int(name.removeprefix("fc")))
    inputs, sums = [images.reshape(len(images), -1).astype(np.float64)], []
    for name in names:
        sums.append(inputs[-1] @ weights[name]["kernel"].astype(np.float64) + weights[name]["bias"])
        inputs.append(np.maximum(sums[-1], 0))
    logits = sums[-1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    label = labels[:, None] == np.arange(logits.shape[1])
    cotangent = np.exp(shifted) / total - label
    gradients = {}
    for k in range(len(names) - 1, -1, -1):
        gradients[names[k]] = inputs[k][:, :, None] * cotangent[:, None, :]
        gradients[f"{names[k]}/bias"] = cotangent
        if k:
            cotangent = (cotangent @ weights[names[k]]["kernel"].astype(np.float64).T) * (sums[k - 1] > 0)
    clearance = [np.abs(z).min(axis=1) / max(np.abs(z).max(), 1e-30) for z in sums[:-1]]
    return Replay(
        logits,
        np.log(total[:, 0]) - shifted[label],
        gradients,
        np.min(clearance, axis=0) if clearance else np.full(len(labels), np.inf),
    )
