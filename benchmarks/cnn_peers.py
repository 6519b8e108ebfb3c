"""Time every way we know to get the gradient of every example at every parameter of a convolutional network.

    pip install -e '.[bench]'
    python -m benchmarks.cnn_peers [--rounds=5] [--num_examples=500]

The network is that of `benchmarks/engine.py`, two convolutions and two dense layers, on images of 32x32x3. All have the
same weights, are first checked to agree, and take turns in one run. Ours keeps what a recorder would: factors of the
dense kernels, which `rebuild` multiplies, and gradients of all else. Its second line multiplies everything. The others
have no factors to keep. Ours is compiled with the recorder's options, `jax.vmap(jax.grad)` as JAX does by itself and,
in a line of its own, with those options too. Where JAX finds a GPU, all compute there.

ReLU has no gradient at zero, and next to it rounding decides: in four of 500 random examples torch and JAX took
different sides, either of them not that of float64. Examples with a unit that near, by float64, are left out, so that
all that are timed can be checked.
"""

import functools
import statistics
import warnings
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags, logging

from benchmarks.engine import cnn
from benchmarks.peers import DEVICE, ROUNDS, backpack, check, error, opacus, print_times, ratio_of, seconds
from train_dynamics.gradients.evaluation import Evaluation, definition, evaluate, find_layers
from train_dynamics.recording.layers import Layer, rebuild
from train_dynamics.training import sweep

NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 500, "Examples.", lower_bound=1)
KINK = 1e-6  # how near to zero is too near; inputs of the units are about 1
NAMES = {"Conv_0": "conv1", "Conv_1": "conv2", "Dense_0": "fc1", "Dense_1": "fc2"}


def to_torch(name: str, kernel: np.ndarray) -> np.ndarray:
    """Lay a kernel, or gradients of it with an axis before, out as torch does: outputs, inputs, space."""
    if name.startswith("Conv"):
        return np.moveaxis(kernel, (-1, -2), (-4, -3))
    if name == "Dense_0":  # whose inputs are images laid flat, which in torch have channels first
        images = kernel.reshape(*kernel.shape[:-2], 8, 8, 64, 64)
        kernel = np.moveaxis(images, -2, -4).reshape(kernel.shape)
    return np.swapaxes(kernel, -1, -2)


def by_torch(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename values of parameters, and lay them out, as torch does."""
    found = {}
    for path, value in gradients.items():
        name, part = path.split("/")
        value = to_torch(name, np.asarray(value)) if part == "kernel" else np.asarray(value)
        found[f"{NAMES[name]}.{'weight' if part == 'kernel' else part}"] = np.ascontiguousarray(value)
    return found


def network(weights: dict[str, np.ndarray]) -> torch.nn.Module:
    parts = {
        "conv1": torch.nn.Conv2d(3, 32, 3, padding=1),
        "relu1": torch.nn.ReLU(),
        "pool1": torch.nn.AvgPool2d(2),
        "conv2": torch.nn.Conv2d(32, 64, 3, padding=1),
        "relu2": torch.nn.ReLU(),
        "pool2": torch.nn.AvgPool2d(2),
        "flatten": torch.nn.Flatten(),
        "fc1": torch.nn.Linear(4096, 64),
        "relu3": torch.nn.ReLU(),
        "fc2": torch.nn.Linear(64, 10),
    }
    made = torch.nn.Sequential()
    for name, part in parts.items():
        made.add_module(name, part)
    made.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return made.to(DEVICE)


def nearest_to_zero(made: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """Tell how near any input of a ReLU comes to zero, in float64, by example."""
    nearest = []
    with torch.no_grad():
        values = images.double()
        for part in made.double():
            if isinstance(part, torch.nn.ReLU):
                nearest.append(values.abs().flatten(1).amin(1))
            values = part(values)
    return torch.stack(nearest).amin(0).cpu().numpy()


def of_functional(made: torch.nn.Module) -> Callable[..., dict[str, torch.Tensor]]:
    """`torch.func`: vmap of grad over the examples."""

    def loss(weights: dict, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(made, weights, (image[None],)), label[None])

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))


def rebuilt(layers: dict[str, Layer], found: Evaluation) -> dict[str, np.ndarray]:
    """Give the gradients themselves."""
    kept = found.kept
    return {
        name: kept[f"gradient.{name}"]
        if f"gradient.{name}" in kept
        else rebuild(layer, *(np.asarray(kept[f"{part}.{name}"]) for part in ("activation", "cotangent")))
        for name, layer in layers.items()
    }


def main(_) -> None:
    logging.set_verbosity(logging.FATAL)
    warnings.simplefilter("ignore")  # of hooks that see no gradient for the images
    number = NUM_EXAMPLES.value
    loss, params, (images, labels) = cnn(number + 10 + number // 5)
    weights = by_torch({f"{name}/{part}": value for name, of in params.items() for part, value in of.items()})
    # Contiguous: Opacus takes for granted that they are, and gives wrong gradients where they are not.
    of_torch = torch.tensor(np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1)), device=DEVICE)
    kept = np.flatnonzero(nearest_to_zero(network(weights), of_torch) > KINK)[:number]
    if len(kept) < number:
        raise SystemExit("too many examples have units next to zero")
    examples = images[kept], labels[kept]
    of_torch = of_torch[kept], torch.tensor(np.asarray(labels)[kept], dtype=torch.long, device=DEVICE)
    layers = find_layers(loss, params, jax.tree.map(lambda leaf: leaf[0], examples))

    ours, dense, plain = "ours: factors, as recorded", "ours: all multiplied", "jax.vmap(jax.grad)"
    same_options = f"{plain}, our options"
    platform = jax.devices()[0].platform

    def with_options(run: Callable) -> Callable:
        return sweep.compiled(jax.jit(run).lower(params, examples=examples), platform)

    everything = functools.partial(definition, loss, names=list(layers))
    of_jax: dict[str, Callable] = {
        name: with_options(functools.partial(evaluate, loss, layouts=dict.fromkeys(layers, form)))
        for name, form in ((ours, "factored"), (dense, "dense"))
    }
    of_jax |= {plain: jax.jit(everything), same_options: with_options(everything)}

    whole = network(weights)
    values = {name: value.detach() for name, value in whole.named_parameters()}
    functional = of_functional(whole)
    faster = torch.compile(functional, dynamic=False)
    ways: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "torch.func": lambda: functional(values, *of_torch),
        "torch.compile of that": lambda: faster(values, *of_torch),
        "Opacus": opacus(network(weights), *of_torch),
        "BackPACK": backpack(network(weights), *of_torch),
    }

    expected = by_torch(of_jax[plain](params, examples=examples))

    def worst(found: dict[str, np.ndarray]) -> float:
        return max(error(found[name], of) for name, of in expected.items())

    errors = {name: worst(by_torch(rebuilt(layers, of_jax[name](params, examples=examples)))) for name in (ours, dense)}
    errors[same_options] = worst(by_torch(of_jax[same_options](params, examples=examples)))
    for name, way in ways.items():
        errors[name] = worst({part: value.detach().cpu().numpy() for part, value in way().items()})
    check(errors)

    timed = {name: functools.partial(run, params, examples=examples) for name, run in of_jax.items()} | ways
    rounds = [{name: seconds(run) * 1000 for name, run in timed.items()} for _ in range(1 + ROUNDS.value)]
    del rounds[0]  # the first is a warm-up
    print(
        f"ms for all gradients of {number} examples; {ROUNDS.value} rounds; torch {torch.__version__}, jax "
        f"{jax.__version__}, {jax.devices()[0].device_kind}"
    )
    print_times(rounds, ours)
    best = min(ways, key=lambda name: statistics.median(round[name] for round in rounds))
    for one, target in ((plain, 4), (same_options, 4), (best, 2)):
        print(f"{one}{', best of other libraries' if one == best else ''}")
        print(f"  / ours                 {ratio_of(rounds, one, ours)}   (target: at least {target})")
        print(f"  / ours, all multiplied {ratio_of(rounds, one, dense)}")


if __name__ == "__main__":
    app.run(main)
