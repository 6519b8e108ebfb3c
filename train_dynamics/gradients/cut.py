"""The backward pass, cut open: each parameter's gradient, with the products that it is the sum of.

The gradient of one example's loss is traced. The trace is then evaluated again, equation by equation, and every value
that comes from a product of an activation and a cotangent remembers that product. Only this file knows how JAX
represents programs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

from train_dynamics.gradients.convolution import Convolution, convolve
from train_dynamics.gradients.products import Dot, Plain, Term

CALLS = ("jit", "pjit", "closed_call", "core_call", "call", "checkpoint", "remat2", "remat")
UNCHANGED = ("name", "copy", "copy_p", "convert_element_type", "sharding_constraint", "pvary")
RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")


class Known(NamedTuple):
    """What is known of a value: whether it depends on the loss's cotangent, and the terms it is the sum of."""

    backward: bool = False
    terms: tuple[Term, ...] = ()


class Cut(NamedTuple):
    """One example's loss, outputs and gradients.

    Attributes:
        loss: The loss.
        outputs: What else the loss function returns.
        gradients: The gradient of every parameter, in the order of `jax.tree.leaves`.
        terms: For each parameter, the terms that its gradient is the sum of. Empty if nothing was recognised.
    """

    loss: Array
    outputs: Any
    gradients: list[Array]
    terms: list[tuple[Term, ...]]


def cut(loss: Callable, params: Any, example: Any) -> Cut:
    """Evaluate the loss of one example and its gradients, with the products that the gradients are made from.

    Values that are not used cost nothing in a compiled program.
    """

    def backward_pass(params: Any, example: Any, seed: Array) -> tuple:
        value, backward, outputs = jax.vjp(lambda params: loss(params, example), params, has_aux=True)
        return backward(seed)[0], value, outputs

    with jax.default_matmul_precision("highest"):  # left alone, recent GPUs would multiply in TF32
        dtype = jax.eval_shape(loss, params, example)[0].dtype
        seed = jnp.ones((), dtype)  # an argument, so that all that depends on it is known to be a cotangent
        closed, shapes = jax.make_jaxpr(backward_pass, return_shape=True)(params, example, seed)
        arguments = jax.tree.leaves((params, example, seed))
        known = [Known()] * (len(arguments) - 1) + [Known(backward=True)]
        values, found = _evaluate(closed.jaxpr, closed.consts, arguments, known)
    gradients, value, outputs = jax.tree.unflatten(jax.tree.structure(shapes), values)
    gradients = jax.tree.leaves(gradients)
    return Cut(value, outputs, gradients, [known.terms for known in found[: len(gradients)]])


def _evaluate(jaxpr: Any, consts: Sequence, arguments: list, known: list[Known]) -> tuple[list, list[Known]]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    knowledge = dict(zip(jaxpr.invars, known, strict=True))

    def read(atom: Any) -> tuple[Any, Known]:
        return (atom.val, Known()) if isinstance(atom, Literal) else (values[atom], knowledge.get(atom, Known()))

    for equation in jaxpr.eqns:
        pairs = [read(atom) for atom in equation.invars]
        operands, of_operands = [value for value, _ in pairs], [known for _, known in pairs]
        backward, name = any(known.backward for known in of_operands), equation.primitive.name
        with equation.ctx.manager:
            if backward and name in CALLS:
                inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
                body, constants = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
                results, of_results = _evaluate(body, constants, operands, of_operands)
            else:
                results = [variable.aval for variable in equation.outvars]
                terms = _terms(name, equation.params, operands, of_operands, results) if backward else ()
                if terms and isinstance(product := terms[0].product, Convolution):
                    # JAX vectorizes the gradient of a kernel once, over examples, and not over seeds again.
                    results = [terms[0].axes.layout(*product.sizes).apply(product.product())]
                elif backward and name == "conv_general_dilated":
                    results = [convolve(equation.primitive, equation.params, *operands)]
                else:
                    params = equation.primitive.get_bind_params(equation.params)
                    results = equation.primitive.bind(*operands, **params)
                    results = results if equation.primitive.multiple_results else [results]
                of_results = [Known(backward, terms)] * len(results)
        values.update(zip(equation.outvars, results, strict=True))
        knowledge.update(zip(equation.outvars, of_results, strict=True))
    both = [read(atom) for atom in jaxpr.outvars]
    return [value for value, _ in both], [known for _, known in both]


def _terms(name: str, params: dict, operands: list, known: list[Known], results: list) -> tuple[Term, ...]:
    """Find the terms that the result of an equation is the sum of, if they are known."""
    if name in ("dot_general", "conv_general_dilated") and known[0].backward != known[1].backward:
        flipped = known[0].backward
        if not all(operand.size for operand in operands):
            return ()
        if name == "dot_general":
            product = Dot.of(params, operands, flipped)
        else:
            product = Convolution.of(params, operands, flipped, results[0].shape)
        return () if product is None else (Term(product, product.axes),)
    if name in ("add", "add_any") and (known[0].terms or known[1].terms):
        if operands[0].shape != operands[1].shape:
            return ()
        return sum((of.terms or (Term(Plain(x), None),) for x, of in zip(operands, known, strict=True)), ())
    if name in (*UNCHANGED, *RESHAPES, "transpose") and known[0].terms and operands[0].dtype == results[0].dtype:
        if name in UNCHANGED:
            return known[0].terms
        if operands[0].size == results[0].size and (name != "reshape" or params["dimensions"] is None):
            return _moved(name, params, known[0].terms, results[0].shape)
    return ()


def _moved(name: str, params: dict, terms: tuple[Term, ...], shape: tuple[int, ...]) -> tuple[Term, ...]:
    """Let the terms follow a change of layout. Returns none if one of them cannot."""

    def follow(term: Term) -> Term | None:
        if name == "transpose":
            permutation = params["permutation"]
            if isinstance(term.product, Plain):
                return Term(Plain(term.product.value.transpose(permutation)), None)
            return Term(term.product, term.axes.transpose(permutation))
        if isinstance(term.product, Plain):
            return Term(Plain(term.product.value.reshape(shape)), None)
        axes = term.axes.reshape(shape)
        return None if axes is None else Term(term.product, axes)

    moved = tuple(follow(term) for term in terms)
    return () if None in moved else moved
