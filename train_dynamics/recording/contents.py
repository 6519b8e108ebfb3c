"""Which arrays a recording holds: what is stored of each layer, and under which names."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from train_dynamics.config import StudyConfig
from train_dynamics.recording.layers import Factors, Layer, rebuild
from train_dynamics.recording.layout import Layout

KINDS = {
    "factored": ("activation", "cotangent"),
    "dense": ("gradient",),
    "sketch": ("sketch",),
    "measures": ("norm", "product", "alignment"),
}


class KeptLayer(NamedTuple):
    """What is stored of a parameter's gradients.

    Attributes:
        name: Its name: the path of the parameter; for the default network's kernels `fc1`, `fc2`, ...
        layer: The parameter: path, shape, and how factors become that shape.
        layout: `factored`, `dense`, `sketch` or `measures`.
        of_inputs: Whether its activation is the flat inputs, which are stored once and not in every record.
    """

    name: str
    layer: Layer
    layout: str
    of_inputs: bool = False

    @property
    def key(self) -> str:
        """Its name inside array names, where a slash would be a directory."""
        return self.name.replace("/", ".")

    @property
    def arrays(self) -> list[str]:
        """Names of its arrays in a block."""
        kinds = KINDS[self.layout][self.of_inputs :]
        return [f"{kind}.{self.key}" for kind in kinds]

    def multiply(
        self, activation: Float[np.ndarray, "#s n *p i"], cotangent: Float[np.ndarray, "#s n *p o"]
    ) -> Float[np.ndarray, "s n ..."]:
        """Multiply stored factors into gradients `[s, n, *shape]`, for all or some seeds and examples."""
        if self.layer.factors is None:
            return activation[..., :, None] * cotangent[..., None, :]
        return rebuild(self.layer, activation, cotangent)

    @property
    def has_gradient(self) -> bool:
        """Whether two examples can be compared: whether gradients, or their sketches, were stored."""
        return self.layout != "measures"


class Contents(NamedTuple):
    """What every record of a recording holds.

    Attributes:
        layers: The recorded layers, by name.
        parameters: Names of the parameters, with dots: `fc1.kernel`.
        output_layer: The layer whose cotangent is the class probabilities minus the one-hot label. Empty if the
            network's outputs are stored instead.
        classes: Whether the network is a classifier, so that there are predictions.
        state: Names of the network's other arrays, such as the statistics of batch normalisation, with dots.
        outputs: Whether the network's outputs are stored, because there is no `output_layer`.
    """

    layers: dict[str, KeptLayer]
    parameters: tuple[str, ...]
    output_layer: str = ""
    classes: bool = True
    state: tuple[str, ...] = ()
    outputs: bool = True

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays of a block."""
        names = ["loss", *(["prediction"] if self.classes else [])]
        names += [f"parameters.{name}" for name in self.parameters] + [f"variables.{name}" for name in self.state]
        of_outputs = [f"cotangent.{self.output_layer}"] if self.output_layer else ["outputs"] * self.outputs
        return list(
            dict.fromkeys([*names, *of_outputs, *(array for kept in self.layers.values() for array in kept.arrays)])
        )

    @property
    def described(self) -> str:
        """Describe the layers in words, at most five of them."""
        names = list(self.layers)
        return ", ".join(names if len(names) < 6 else [*names[:4], f"and {len(names) - 4} others"])

    def to_json(self) -> dict[str, Any]:
        """Return what a header stores of it."""
        layers = [
            {
                "name": kept.name,
                "parameter": kept.layer.name,
                "shape": list(kept.layer.shape),
                "layout": kept.layout,
                "of_inputs": kept.of_inputs,
                "factors": None
                if (of := kept.layer.factors) is None
                else {**of._asdict(), "layout": of.layout._asdict()},
            }
            for kept in self.layers.values()
        ]
        return {**self._asdict(), "layers": layers}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Contents":
        """Build it from what `to_json` returned, after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: If it is malformed.
        """
        layers = {}
        for of in values["layers"]:
            factors = of["factors"]
            if factors is not None:
                layout = Layout(**{name: tuple(sizes) for name, sizes in factors["layout"].items()})
                factors = Factors(**{**factors, "layout": layout})
            if of["layout"] not in KINDS:
                raise ValueError(f"a layer has the layout {of['layout']}")
            layer = Layer(of["parameter"], tuple(of["shape"]), factors)
            layers[of["name"]] = KeptLayer(of["name"], layer, of["layout"], of["of_inputs"])
        rest = {name: value for name, value in values.items() if name != "layers"}
        lists = {name: tuple(rest.pop(name)) for name in ("parameters", "state")}
        return cls(layers=layers, **lists, **rest)


def mlp_contents(config: StudyConfig, widths: Sequence[int]) -> Contents:
    """Return what recordings of the MLP hold, including those of format 4, which do not store it.

    Args:
        config: The configuration.
        widths: Number of units of each layer, the inputs first.
    """
    names = config.layer_names
    shapes = dict(zip(names, itertools.pairwise(widths), strict=True))
    layers = {}
    for name in config.layers:
        of_inputs = config.gradient_layout == "factored" and name == names[0]
        layers[name] = KeptLayer(name, Layer(f"{name}/kernel", shapes[name]), config.gradient_layout, of_inputs)
    return Contents(layers, tuple(f"{name}.{part}" for name in names for part in ("kernel", "bias")), names[-1])
