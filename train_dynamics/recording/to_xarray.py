"""A recording as an `xarray.Dataset` that reads from disk on demand. It is imported when it is used."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from jaxtyping import Float, Int, Shaped
from xarray.backends import BackendArray
from xarray.core import indexing

from train_dynamics.config import InputError
from train_dynamics.recording.contents import KeptLayer
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.layers import TOGETHER

if TYPE_CHECKING:
    from train_dynamics.recording.reader import Recording

Key = Sequence[slice | np.ndarray]
"""What is asked for of each axis."""
Make = Callable[[Sequence[np.ndarray], Key], np.ndarray]
"""Makes the values at one iteration from arrays `[s, ...]` on disk: those of the seeds and other axes asked for."""


MOST_BYTES = 2**27  # of a chunk that nobody asked for otherwise; as Dask's own


def to_xarray(recording: "Recording", chunks: Mapping[str, Any] | None = None) -> xarray.Dataset:
    """Return everything recorded; see `Recording.to_xarray`.

    Raises:
        InputError: If `chunks` names a dimension that does not exist.
        RecordingError: If there is no record yet.
    """
    if not recording.num_records:
        raise RecordingError(f"{recording.path} holds no record yet; try again when its first block is written")
    variables, dims = {}, _Dims(recording)
    for name in ("loss", "prediction", "outputs"):
        if name in dims.block.names:
            _, *rest = dims.shape(name)
            logits = rest and recording.contents.classes
            axes = ["class_name"] if logits else [dims.of(size, f"output_{k}") for k, size in enumerate(rest)]
            variables[name] = _stored(recording, dims, name, ["example", *axes])
    if recording.contents.classes:
        variables |= _of_classifier(recording, dims)
    for kind, paths in (("parameters", recording.contents.parameters), ("variables", recording.contents.state)):
        for path in paths:
            name = f"{kind}.{path}"
            variables[name] = _stored(recording, dims, name, dims.of_parameter(path, dims.shape(name)))
    for kept in recording.contents.layers.values():
        variables |= _of_layer(recording, dims, kept)
    attrs = {"recording": str(recording.path), "finished": int(recording.finished)}  # netCDF has no truth values
    data = xarray.Dataset(variables, _coordinates(recording), attrs)
    return data if chunks is None else _divided(recording, data, chunks)


def _divided(recording: "Recording", data: xarray.Dataset, chunks: Mapping[str, Any]) -> xarray.Dataset:
    """Make Dask arrays. Each of their tasks reads one chunk, in whatever process it runs."""
    from dask.base import tokenize

    if unknown := [name for name in chunks if name not in data.dims]:
        known = ", ".join(map(str, data.dims))
        raise InputError(f"to_xarray(chunks=...): there is no dimension {unknown[0]!r}; there are: {known}")
    of = [recording.paths, [part.checksum for part in recording.parts], recording.num_records]
    divided = {}
    for name, variable in data.data_vars.items():
        own = {dim: length for dim, length in chunks.items() if dim in variable.dims}
        if "iteration" not in own:
            own["iteration"] = _within_blocks(recording, variable.nbytes // recording.num_records)
        # A name is a promise to Dask of the same values: of another recording in the same place it is another one.
        token = tokenize(name, list(map(str, of[0])), *of[1:], sorted(own.items()))
        try:
            divided[name] = variable.variable.chunk(own, name=f"{name}-{token}")
        except (TypeError, ValueError) as error:
            raise InputError(f"to_xarray(chunks=...): Dask cannot divide {name} this way: {error}") from error
    return data.assign(divided)


def _within_blocks(recording: "Recording", each: int) -> tuple[int, ...]:
    """Divide the records into blocks, and blocks larger than `MOST_BYTES` into parts as equal as possible."""
    found = []
    for block in recording.blocks():
        records = len(block.iterations)
        parts = min(records, -(-records * each // MOST_BYTES))
        found += [len(part) for part in np.array_split(block.iterations, max(parts, 1))]
    return tuple(found)


class _Dims:
    """Names of axes. A name has the same length everywhere in the data set."""

    def __init__(self, recording: "Recording") -> None:
        self.block = next(recording.blocks())
        self._recording, self._sizes = recording, {}
        kept = [kept for kept in recording.contents.layers.values() if kept.name != TOGETHER]
        self._recorded = {kept.layer.name.replace("/", "."): kept for kept in kept}
        modules = {path.rpartition(".")[0] or path for path in self._recorded}
        self._only = modules.pop() if len(modules) == 1 else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array without seeds and iterations."""
        return self.block.described(name)[0][2:]

    def of(self, size: int, *names: str) -> str:
        """Return the first name that is free, or that already has this length."""
        return next(name for name in names if self._sizes.setdefault(name, size) == size)

    def of_parameter(self, path: str, shape: Sequence[int]) -> list[str]:
        """Name the axes of a parameter: `in` and `out` if these are known, otherwise by number.

        Biases share the `out` of their kernel. Names are prefixed with the layer, unless it is the only one recorded.
        """
        module = path.rpartition(".")[0] or path
        before = "" if module == self._only else f"{module}_"
        sides = [""] * len(shape)
        kept = self._recorded.get(path)
        layout = kept.layer.factors.layout if kept and kept.layer.factors else None
        if layout and len(shape) == 2 and layout.permutation == (1, 0):
            sides = ["out", "in"]
        elif len(shape) > 1 and (path.endswith("kernel") or (layout and len(shape) == 2)):
            sides[-2:] = ["in", "out"]
        elif len(shape) == 1:
            sides = ["out"]
        return [
            self.of(size, *([f"{before}{side}", f"{path}_{side}"] if side else []), f"{path}_{k}")
            for k, (side, size) in enumerate(zip(sides, shape, strict=True))
        ]


class _Lazy(BackendArray):
    """Values `[seed, iteration, ...]`, computed from arrays on disk on demand.

    Args:
        recording: The recording.
        names: Names of the arrays to read from a block.
        shape: Shape of the values.
        dtype: Their type.
        make: Function from the arrays to the values at one iteration.
    """

    def __init__(
        self, recording: "Recording", names: Sequence[str], shape: tuple[int, ...], dtype: np.dtype, make: Make
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._recording, self._names, self._make = recording, names, make

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        alone = [isinstance(of_axis, int | np.integer) for of_axis in key]
        key = [np.array([of_axis]) if one else of_axis for of_axis, one in zip(key, alone, strict=True)]
        sizes = [len(np.arange(size)[of_axis]) for size, of_axis in zip(self.shape, key, strict=True)]
        found = np.empty(sizes, self.dtype)
        seeds, records, *rest = key
        wanted = self._recording.iterations[records]
        for block in self._recording.blocks():
            here = np.intersect1d(wanted, block.iterations)
            if len(here):
                rows = zip(*(block.take(name, here) for name in self._names), strict=True)
                for t, arrays in zip(here, rows, strict=True):
                    found[:, wanted == t] = self._make(arrays, (seeds, *rest))[:, None]
        return found.reshape([size for size, one in zip(sizes, alone, strict=True) if not one])


def _chosen(array: np.ndarray, key: Key) -> np.ndarray:
    """Index each axis separately. Axes that the key does not mention are kept whole."""
    for axis, of_axis in enumerate(key):
        array = array[(slice(None),) * axis + (of_axis,)]
    return array


def _variable(
    recording: "Recording",
    names: Sequence[str],
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: np.dtype,
    make: Make,
    about: str,
) -> xarray.Variable:
    whole = (len(recording.seeds), recording.num_records, *shape)
    lazy = indexing.LazilyIndexedArray(_Lazy(recording, names, whole, dtype, make))
    return xarray.Variable(("seed", "iteration", *dims), lazy, {"long_name": about})


ABOUT = {
    "loss": "loss of the example",
    "prediction": "likeliest class",
    "outputs": "what the network says",
    "parameters": "weights",
    "variables": "what else the network is made of",
    "gradient": "gradient of the example's loss",
    "sketch": "random projection of the gradient",
    "norm": "L2 norm of the gradient",
    "product": "product of the gradient with the mean gradient",
    "alignment": "cosine of the gradient to the mean gradient",
}


def _stored(recording: "Recording", dims: _Dims, name: str, axes: Sequence[str]) -> xarray.Variable:
    """Return an array as it is on disk."""
    shape, dtype = dims.block.described(name)
    return _variable(recording, [name], axes, shape[2:], dtype, _as_stored, ABOUT[name.partition(".")[0]])


def _as_stored(arrays: Sequence[np.ndarray], key: Key) -> np.ndarray:
    return _chosen(arrays[0], key)


def _of_classifier(recording: "Recording", dims: _Dims) -> dict[str, xarray.Variable]:
    """Return the variables that follow from the records of a classifier."""
    size, labels, output = len(recording.labels), recording.labels, recording.contents.output_layer
    correct = functools.partial(_correct, labels)
    names = [f"cotangent.{output}", "loss"] if output else ["outputs"]
    probabilities = functools.partial(_probabilities, labels)
    shape, dtype = dims.block.described(names[0])
    axes, about = ("example", "class_name"), "class probabilities"
    return {
        "correct": _variable(
            recording, ["prediction"], ["example"], [size], np.dtype(bool), correct, "predicted as labelled"
        ),
        "probabilities": _variable(recording, names, axes, shape[2:], dtype, probabilities, about),
    }


def _correct(labels: Int[np.ndarray, " n"], arrays: Sequence[np.ndarray], key: Key) -> np.ndarray:
    return _chosen(arrays[0] == labels, key)


def _probabilities(labels: Int[np.ndarray, " n"], arrays: Sequence[np.ndarray], key: Key) -> np.ndarray:
    from train_dynamics.recording.reader import probabilities_of, softmax

    seeds, examples, classes = key
    arrays = [_chosen(array, (seeds, examples)) for array in arrays]
    found = probabilities_of(*arrays, labels[examples]) if len(arrays) > 1 else softmax(*arrays)
    return found[..., classes]


def _of_layer(recording: "Recording", dims: _Dims, kept: KeptLayer) -> dict[str, xarray.Variable]:
    """Return what was stored of a layer: its gradient, sketch or measures."""
    if kept.layout in ("sketch", "measures"):
        found = {}
        for name in kept.arrays:
            _, *rest = dims.shape(name)
            axes = [dims.of(size, "sketch", f"{kept.key}_sketch") for size in rest]
            found[name] = _stored(recording, dims, name, ["example", *axes])
        return found
    path = kept.layer.name.replace("/", ".")
    shape = dims.shape(f"parameters.{path}")  # recordings of format 4 do not say how many inputs there are
    make = _as_stored if kept.layout == "dense" else functools.partial(_gradient, recording, kept)
    axes, dtype = ("example", *dims.of_parameter(path, shape)), dims.block.described(kept.arrays[-1])[1]
    shape = (len(recording.labels), *shape)
    return {
        f"gradient.{kept.key}": _variable(recording, kept.arrays, axes, shape, dtype, make, ABOUT["gradient"]),
    }


def _gradient(
    recording: "Recording", kept: KeptLayer, arrays: Sequence[np.ndarray], key: Key
) -> Float[np.ndarray, "s n ..."]:
    """Multiply the factors only for the chosen seeds and examples, because all gradients may be gigabytes."""
    seeds, examples, *sides = key
    factors = [_chosen(array, (seeds, examples)) for array in arrays]
    if kept.of_inputs:  # alike for every seed
        factors.insert(0, recording.inputs().reshape(1, len(recording.labels), -1)[:, examples])
    return _chosen(kept.multiply(*factors), (slice(None), slice(None), *sides))


def _coordinates(recording: "Recording") -> dict[str, Any]:
    """Name seeds, iterations, examples and classes."""
    ids, labels, (_, names) = _text(recording.ids), recording.labels, recording.classes
    unique = len(np.unique(ids)) == len(ids)
    found = {
        "seed": recording.seeds,
        "iteration": recording.iterations,
        "example": ids if unique else np.arange(len(ids)),
        "id": ("example", ids),
        "label": (("example", *(f"target_{k}" for k in range(labels.ndim - 1))), labels),
    }
    if recording.contents.classes:
        found |= {"class_name": np.array(names), "label_name": ("example", np.array(names)[labels])}
        if recording.noisy.any():
            found["true_label"] = ("example", recording.true_labels)
    return found


def _text(ids: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    return np.char.decode(ids, errors="backslashreplace") if ids.dtype.kind == "S" else ids
