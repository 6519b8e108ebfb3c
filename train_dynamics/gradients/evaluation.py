"""Every example's loss, outputs and gradients: the definition, and the fast way in any layout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
from jaxtyping import Array, Float

from train_dynamics.config import InputError
from train_dynamics.gradients.cut import cut
from train_dynamics.gradients.examples import over_examples, shape_of_one
from train_dynamics.gradients.measures import Share, mean_gradient, measures_of
from train_dynamics.gradients.parameters import check_loss, in_float32, named
from train_dynamics.gradients.products import Term, dense, join, layers_of
from train_dynamics.recording.layers import TOGETHER, Layer
from train_dynamics.recording.sketch import sketch_of

Loss = Callable[[Any, Any], tuple[Any, Any]]
"""`loss(params, example) -> (loss, outputs)`: a pure function of a pytree of parameters and one example, a pytree."""

Form = Literal["factored", "dense", "measures", "sketch"]
"""What is kept of a layer's gradients: exact factors where they are smaller, gradients, measures, or a projection."""


class Evaluation(NamedTuple):
    """The result of one pass over the examples.

    Attributes:
        loss: Loss of each example.
        outputs: What else the loss function returns. Each leaf has a first axis of examples.
        kept: What is stored of the gradients, under `KIND.NAME` with the parameter's name; see `evaluate`.
    """

    loss: Float[Array, " n"]
    outputs: Any
    kept: dict[str, Array]


def find_layers(loss: Loss, params: Any, example: Any) -> dict[str, Layer]:
    """Find all parameters, and which of them have exact gradient factors that are smaller than the gradient.

    Args:
        loss: The loss of one example.
        params: Parameters: arrays or `jax.ShapeDtypeStruct`.
        example: One example: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Layers by name, in the order of `jax.tree.leaves(params)`.

    Raises:
        InputError: If the loss does not return a pair of a scalar and outputs, or if parameters are not real numbers.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]).sum(), ())
        >>> find_layers(loss, {"w": jnp.ones((8, 9))}, jnp.ones(8))["w"].factors.i
        8
    """
    layers = []

    def trace(params: Any, example: Any) -> tuple:
        params = in_float32(params)
        check_loss(loss, params, example)
        layers.extend(layers_of(params, cut(loss, params, example).terms).values())
        return ()

    jax.eval_shape(trace, params, example)
    return {layer.name: layer for layer in layers}


def evaluate(
    loss: Loss,
    params: Any,
    examples: Any,
    layouts: Mapping[str, str],
    batch_size: int | None = None,
    sketch_size: int = 256,
    share: Share | None = None,
) -> Evaluation:
    """Evaluate every example, and store its gradient at each chosen layer in the form that `layouts` asks for.

    Everything is exact up to rounding in float32: gradients equal what `definition` returns.

    Args:
        loss: The loss of one example.
        params: Parameters. bfloat16 is computed as float32.
        examples: A pytree of arrays with a first axis of examples.
        layouts: How to store gradients, by the name of a parameter.
        batch_size: Examples to evaluate at a time, which bounds memory. None evaluates all at once.
        sketch_size: Largest length of sketches. `sketch.sketch_error` tells how accurate they are.
        share: If examples are divided over devices: how those here relate to all. Measures are over all examples.

    Returns:
        Losses, outputs, and for a layer `NAME`:

        - factored: `activation.NAME` [n, i] and `cotangent.NAME` [n, o], with an axis of positions after n if there are
          several; `layers.rebuild` multiplies them. A layer without factors is kept dense.
        - dense: `gradient.NAME` [n, *shape].
        - measures: `norm.NAME`, `product.NAME` with the layer's mean gradient over all examples, and `alignment.NAME`,
          the cosine of the two, 0 where either is zero; [n] each. The same for all parameters together as `all`,
          whichever layers are chosen. Examples are evaluated twice for it.
        - sketch: `sketch.NAME` [n, k], a random projection, linear in the gradient and the same always: see `sketch`.

    Raises:
        InputError: As `find_layers`; or if examples have no common first axis, or a name or a layout is unknown.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]).sum(), ())
        >>> found = evaluate(loss, {"w": jnp.ones((8, 9))}, jnp.ones((5, 8)), {"w": "factored"})
        >>> found.kept["activation.w"].shape, found.kept["cotangent.w"].shape
        ((5, 8), (5, 9))
    """
    params = in_float32(params)
    check_loss(loss, params, shape_of_one(examples))
    _check_layouts(layouts, list(named(params)))
    measured = [name for name, form in layouts.items() if form == "measures"]

    def one(example: Any) -> Evaluation:
        found = cut(loss, params, example)
        layers, kept = layers_of(params, found.terms), {}
        for layer, gradient, terms in zip(layers.values(), found.gradients, found.terms, strict=True):
            if layouts.get(layer.name, "measures") != "measures":
                kept.update(_keep(layer, layouts[layer.name], sketch_size, gradient, terms))
        for kind, values in measures_of(layers, found.gradients, found.terms, mean).items() if measured else ():
            kept.update({f"{kind}.{name}": values[name] for name in (*measured, TOGETHER)})
        return Evaluation(found.loss, found.outputs, kept)

    with jax.default_matmul_precision("highest"):
        mean = mean_gradient(loss, params, examples, batch_size, share) if measured else {}
        return over_examples(one, examples, batch_size)


def definition(
    loss: Loss, params: Any, examples: Any, names: Sequence[str], batch_size: int | None = None
) -> dict[str, Float[Array, "n ..."]]:
    """Compute d loss_n / d parameter for every example in the plain way. Everything else is tested against this.

    Args:
        loss: The loss of one example.
        params: Parameters. bfloat16 is computed as float32.
        examples: A pytree of arrays with a first axis of examples.
        names: Names of parameters.
        batch_size: Examples to evaluate at a time, which bounds memory. None evaluates all at once.

    Returns:
        Gradients [n, *shape] by name.

    Example:
        >>> loss = lambda params, x: ((x @ params["w"]).sum(), ())
        >>> definition(loss, {"w": jnp.ones((8, 9))}, jnp.ones((5, 8)), ["w"])["w"].shape
        (5, 8, 9)
    """
    params = in_float32(params)

    def one(example: Any) -> dict[str, Array]:
        gradients = named(jax.grad(loss, has_aux=True)(params, example)[0])
        return {name: gradients[name] for name in names}

    with jax.default_matmul_precision("highest"):
        return over_examples(one, examples, batch_size)


def _check_layouts(layouts: Mapping[str, str], names: Sequence[str]) -> None:
    if missing := [name for name in layouts if name not in names]:
        raise InputError(f"no parameter is named {', '.join(missing)}; there are {', '.join(names)}")
    if wrong := set(layouts.values()) - set(get_args(Form)):
        raise InputError(f"layouts are {', '.join(get_args(Form))}; found {', '.join(sorted(wrong))}")


def _keep(layer: Layer, form: str, size: int, gradient: Array, terms: tuple[Term, ...]) -> dict[str, Array]:
    if layer.factors is None or form == "dense":
        value = dense(gradient, terms)
        if form == "sketch":
            return {f"sketch.{layer.name}": sketch_of(layer, size, value)}
        return {f"gradient.{layer.name}": value}
    activation, cotangent = join(terms)
    if form == "sketch":
        return {f"sketch.{layer.name}": sketch_of(layer, size, factors=(activation, cotangent))}
    if layer.factors.positions == 1:
        activation, cotangent = activation[0], cotangent[0]
    return {f"activation.{layer.name}": activation, f"cotangent.{layer.name}": cotangent}
