"""Does a recording hold what it should? Every checksum, and a sample computed again from weights and images."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Block, Recording

TOLERANCE = 1e-4  # a hundred times what float32 leaves; products in TF32 or a lost layer leave ten times as much
EXAMPLES = 64
UNDECIDED = 1e-5


@dataclasses.dataclass(frozen=True)
class Verification:
    """What came of checking a recording.

    Attributes:
        problems: What is wrong, a line each; empty if nothing is.
        num_bytes: Bytes of the blocks whose checksums were compared.
        num_compared: Gradients computed again, of one example at one iteration each.
        errors: For the loss and for the gradients of each layer, the largest difference between what is stored and
            what was computed again, over the largest value; for the prediction, 0 or 1.
    """

    problems: list[str]
    num_bytes: int
    num_compared: int
    errors: dict[str, float]


def verify(
    recording: Recording, samples: int, seed: int = 0, progress: Callable[[Block], object] = lambda block: None
) -> Verification:
    """Check that all is there, compare every checksum, and compute a random sample again in float64.

    Of any but the default network nothing is computed again, for that would run the user's code.

    The sample is computed from the stored weights and images by the chain rule, written out; what is not compared is
    what rounding decides: predictions whose two largest logits are nearly equal, and gradients of examples that sit at
    the kink of a unit.

    Args:
        recording: The recording.
        samples: Pairs of seed and iteration to draw, at most all, and up to 64 examples of each, always with the last.
        seed: Seed of the draw.
        progress: Called after each block.
    """
    problems = []
    if not recording.finished:
        state = "is still being written" if recording.being_written else "is unfinished"
        there, planned = recording.num_records, recording.num_planned
        problems.append(f"{recording.path} {state} and holds {there} of {planned} records")
    problems += recording.data_problems
    try:
        _ = recording.further
    except RecordingError as error:
        problems.append(str(error))
    num_bytes = 0
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as threads:
        checks = threads.map(lambda block: _check_block(block, recording.of_loop), recording.blocks())
        for block, (found, size) in zip(recording.blocks(), checks, strict=True):
            problems += found
            num_bytes += size
            progress(block)
    if problems or not samples or not recording.num_records or not recording.replayable:
        return Verification(problems, num_bytes, 0, {})
    compared, errors = _compare(recording, samples, np.random.default_rng(seed))
    for name, (error, s, t) in errors.items():
        if not error <= TOLERANCE:
            problems.append(
                f"{recording.path}: the {name} of seed {recording.seeds[s]} at iteration {t} is not what weights and "
                f"images give, by {error:.1e} of its largest value; up to {TOLERANCE:.0e} would be rounding"
            )
    errors = {name: error for name, (error, _, _) in errors.items()}
    return Verification(problems, num_bytes, compared, errors)


def _check_block(block: Block, of_loop: bool) -> tuple[list[str], int]:
    """Read everything in a block, which compares its checksums; training goes on from one that is not of a loop."""
    problems, size = [], 0
    states = {path.name.removeprefix("state.") for path in block.path.glob("state.*")}
    states |= {name for name in block.names if name.startswith("parameters.") and not of_loop}
    reads = [(block.each, name) for name in block.names]
    reads += [(block.state, name) for name in sorted(states)]
    for read, name in reads:
        try:
            size += sum(row.nbytes for row in read(name))
        except RecordingError as error:
            problems.append(str(error))
    if not of_loop and not (block.path / "_METADATA").is_file():
        problems.append(f"{block.path / '_METADATA'} is missing, without which training cannot go on from this block")
    return problems, size


def _compare(recording: Recording, samples: int, rng: np.random.Generator) -> tuple[int, dict[str, tuple]]:
    """Compute a sample again and find the largest relative error of each kind, and of which seed and iteration."""
    compared = 0
    largest: dict[str, float] = {}
    worst: dict[str, tuple[float, int, int]] = {}
    total = recording.num_records * len(recording.seeds)
    for pair in np.sort(rng.choice(total, min(samples, total), replace=False)).tolist():
        record, s = divmod(pair, len(recording.seeds))
        t = int(recording.iterations[record])
        # The last one always: a compiler that divides the examples wrongly among its loops gets those wrong.
        last = len(recording.labels) - 1
        examples = np.append(np.sort(rng.choice(last, min(EXAMPLES - 1, last), replace=False)), last)
        compared += len(examples) * len(exact_layers(recording))
        for name, stored, expected in _both(recording, s, t, examples):
            difference = float(np.nan_to_num(np.abs(stored - expected), nan=np.inf).max(initial=0))
            worst[name] = max(worst.get(name, (-1.0, 0, 0)), (difference, s, t))
            largest[name] = max(largest.get(name, 1e-30), float(np.abs(expected).max(initial=0)))
    return compared, {name: (difference / largest[name], s, t) for name, (difference, s, t) in worst.items()}


def _both(
    recording: Recording, s: int, t: int, examples: Int[np.ndarray, " k"]
) -> Iterator[tuple[str, Float[np.ndarray, "..."], Float[np.ndarray, "..."]]]:
    """Give what is stored of some examples, and the same computed again."""
    weights = {name: {part: value[s] for part, value in of.items()} for name, of in recording.parameters(t).items()}
    again = replay(weights, recording.inputs()[examples], recording.labels[examples])
    yield "loss", recording.loss(t)[s, examples], again.loss
    lead = np.diff(np.sort(again.logits, axis=1)[:, -2:]).min(axis=1, initial=np.inf)  # one class has nothing to lead
    decided = lead > UNDECIDED * np.abs(again.logits).max()
    stored = recording.predictions(t)[s, examples]
    yield "prediction", np.float64(stored == again.logits.argmax(axis=1))[decided], np.ones(np.count_nonzero(decided))
    for layer in exact_layers(recording):
        if recording.kept(layer).layout == "dense":
            gradient = recording.gradients(layer, t)[s, examples]
        else:
            activation, cotangent = recording.factors(layer, t)
            gradient = activation[s % len(activation), examples, :, None] * cotangent[s, examples, None, :]
        clear = again.clearance > UNDECIDED
        yield f"gradient of {layer}", gradient[clear], again.gradients[layer][clear]


def exact_layers(recording: Recording) -> list[str]:
    """List the layers whose gradients are stored as they are."""
    return [layer for layer in recording.layers if recording.kept(layer).layout in ("factored", "dense")]


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """An evaluation in float64.

    Attributes:
        logits: Outputs of the network.
        loss: Cross-entropy of each example, in nats.
        gradients: Of the loss with respect to each layer's kernel, for each example, and to `LAYER/bias`.
        clearance: How near any hidden unit of an example is to its kink, over the largest input of a unit in its layer.
    """

    logits: Float[np.ndarray, "k c"]
    loss: Float[np.ndarray, " k"]
    gradients: dict[str, Float[np.ndarray, "k ..."]]
    clearance: Float[np.ndarray, " k"]


def replay(
    weights: dict[str, dict[str, np.ndarray]], images: Float[np.ndarray, "k ..."], labels: Int[np.ndarray, " k"]
) -> Replay:
    """Run a ReLU network on some examples and back, by the chain rule written out.

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
