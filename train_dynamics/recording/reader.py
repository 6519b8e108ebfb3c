"""Reads recordings. A recording on disk is the only contract between recording and analysis.

    RECORDING/ config.json      written first: the configuration, sizes, versions, and checksums of itself and the data
    set dataset/         images.npy or inputs.npy, labels.npy, ids.npy, and true_labels.npy if labels were flipped
    blocks/<t>/      an Orbax checkpoint of plain Zarr v3 arrays: `record`, the records from iteration t on with leading
    axes [s, t], and `state`, all seeds' state after the last of the block's updates further/         what training on
    gave, for the scores that need it, if `train_dynamics.further` did so histories/       measures of every example at
    every record, if `train_dynamics.analyze` made them

A block appears under its name when it is whole, and not before. docs/RECORDING.md has it in full.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from train_dynamics.config import InputError, StudyConfig, pluralise
from train_dynamics.data.arrays import Dataset
from train_dynamics.data.batches import held_out
from train_dynamics.data.scaling import network_inputs
from train_dynamics.data.trees import Tree
from train_dynamics.recording import parts
from train_dynamics.recording.blocks import Block, JoinedBlock, row_of
from train_dynamics.recording.contents import Contents, KeptLayer
from train_dynamics.recording.examples import read_examples
from train_dynamics.recording.format import (
    RecordingError,
    checksum_of,
    contents_of,
    npy,
    place_of,
    read_header,
    save_arrays,
    sealed,
    versions,
    whole_blocks,
    written_whole,
)
from train_dynamics.recording.histories import Histories, History, gradients_of, history_of
from train_dynamics.recording.joining import check_alike
from train_dynamics.recording.layers import rebuild
from train_dynamics.recording.locks import PATIENCE, busy, is_being_written, locked
from train_dynamics.recording.remote import AnyPath, Url, check_local, located
from train_dynamics.recording.storage import read_whole

if TYPE_CHECKING:
    import xarray

FURTHER = ("retrained", "private")


class FurtherTraining(NamedTuple):
    """What `train_dynamics.further` computed.

    Attributes:
        settings: The settings it was run with.
        retrained: Class probabilities of each example after the networks were trained further on held-out examples.
        private: Most likely class of each example by networks trained with DP-SGD, for each noise multiplier.
    """

    settings: dict[str, Any]
    retrained: Float[np.ndarray, "s n c"]
    private: Integer[np.ndarray, "s level n"]


class CleanlabInputs(NamedTuple):
    """The arguments of cleanlab's functions, under cleanlab's names.

    Attributes:
        labels: Class of each example, as the networks were told it.
        pred_probs: Class probabilities, averaged over seeds; each row sums to 1.
    """

    labels: Int[np.ndarray, " n"]
    pred_probs: Float[np.ndarray, "n c"]


class Recording:
    """A recording, opened for reading. It can be read on any machine, without JAX.

    Args:
        path: The directory that `train_dynamics.train` or a `Recorder` wrote. Several directories, with the same
            examples and different seeds, are read as one. A URL such as `s3://bucket/study` is read through fsspec.

    Attributes:
        path: The directory; for several, all of them, comma separated.
        config: The configuration it was made with. For a recording of your own training loop: only what you told
            `Recorder`.
        of_loop: Whether it was recorded by a `Recorder` in your own training loop, rather than by
            `train_dynamics.train`.
        seeds: The seeds; index `s` of every leading axis is seed `seeds[s]`.
        num_iterations: Number of updates in the whole run, `T`. For a recording of your own training loop: the last
            recorded iteration.
        iterations: The recorded iterations. In a finished recording these are 0 to `T`, or those that `--record_every`
            or `--records_per_doubling` selected.
        num_planned: Number of records in the finished recording. For a recording of your own training loop: the number
            of records so far.
        class_names: Name of each class. Empty for a regression.
        code: The user's code that it was made with, as text. None of it is ever run.
        versions: Versions of all software that it was made with.

    Raises:
        RecordingError: If the directory is not a recording, or has a newer format, or if several do not fit together.

    Example:
        >>> recording = Recording("recordings/mini_mnist")
        >>> recording.gradients("fc2", t=100).shape
        (10, 6000, 8, 10)
    """

    def __init__(self, path: Any) -> None:
        single = isinstance(path, str | os.PathLike | Url)
        paths = [path] if single or not isinstance(path, Iterable) else list(path)
        if not all(isinstance(one, str | os.PathLike | Url) for one in paths):
            raise RecordingError(f"path={path!r}: must be the directory of a recording, or a list of such")
        paths = [located(one) for one in paths]
        by_several = single and _is_by_several(paths[0])
        paths = parts.directories(paths[0]) if by_several else paths
        self._parts = [] if single and not by_several else [Recording(one) for one in paths]
        if not self._parts and single:
            self._open(paths[0])
        else:
            self._join()
        self._opened: AnyPath | list[AnyPath] = located(path) if single else paths
        if by_several:
            self.path = self._opened

    def _open(self, path: AnyPath) -> None:
        self.path = path
        self._root = self.path.resolve()  # stays right if the process moves to another directory
        header = read_header(self.path)
        self.config = StudyConfig.from_dict(header["config"])
        self.of_loop = "loop" in header
        self.seeds = np.array(header["loop"]["seeds"] if self.of_loop else self.config.seeds)
        self.class_names = tuple(header["class_names"])
        self.code: dict[str, dict[str, str]] = header.get("code", {})
        self.versions: dict[str, str] = header["versions"]
        self.contents: Contents = contents_of(header)
        names = self.contents.arrays
        self._blocks = [
            Block(self._root / "blocks" / str(start), iterations, names, len(self.seeds), place_of(header, start))
            for start, iterations in whole_blocks(self.path, header).items()
        ]
        self.iterations = np.concatenate([np.arange(0), *(block.iterations for block in self._blocks)])
        self.block_length: int = header.get("block_length", 0)
        self.num_planned = len(self.config.iterations(header["num_examples"]))
        self.num_iterations: int = header.get("num_iterations", 0)
        if self.of_loop:
            self.num_planned, self.num_iterations = len(self.iterations), int(self.iterations.max(initial=0))
        self._checksum: str = header["checksum"]
        self._checksums: dict[str, str] = header["dataset"]
        self._header = header
        self._arrays: dict[str, np.ndarray] = {}

    def _join(self) -> None:
        """Read several recordings as one. Everything but the seeds is taken from the first."""
        check_alike(self._parts)
        shortest = min(self._parts, key=lambda part: part.num_records)  # while they are written, one is behind
        self.__dict__.update({**shortest.__dict__, "_parts": self._parts})
        together = ",".join(str(part.path) for part in self._parts)
        self.path = Url(together) if "://" in together else Path(together)
        self.seeds = np.concatenate([part.seeds for part in self._parts])
        self.config = dataclasses.replace(self.config, first_seed=int(self.seeds.min()), num_seeds=len(self.seeds))
        of_parts = [part._blocks for part in self._parts]
        self._blocks = [JoinedBlock(block.iterations, block.names, of_parts) for block in self._blocks]

    def __reduce__(self) -> tuple[type, tuple[AnyPath | list[AnyPath]]]:
        several = isinstance(self._opened, list)  # another process opens it anew, and may be in another directory
        return Recording, ([one.absolute() for one in self._opened] if several else self._opened.absolute(),)

    def reopened(self) -> "Recording":
        """Open the recording again, to see records added since."""
        return Recording(self._opened)

    def __repr__(self) -> str:
        return f"Recording({str(self.path)!r}): {self.num_records} of {self.num_planned} records"

    @property
    def paths(self) -> list[AnyPath]:
        """The directories: one, or several that are read as one."""
        return [part.path for part in self._parts] or [self.path]

    @property
    def parts(self) -> list["Recording"]:
        """The recordings that are read as one. For a single directory, the recording itself."""
        return self._parts or [self]

    @property
    def root(self) -> AnyPath:
        """The absolute path of the directory, or of the first of several."""
        return self._root

    @property
    def checksum(self) -> str:
        """Checksum of `config.json`, or of the first of several. Derived files use it to identify the recording."""
        return self._checksum

    @property
    def num_records(self) -> int:
        """Number of records so far, of each seed."""
        return len(self.iterations)

    @property
    def batch_size(self) -> int | None:
        """Number of examples in a full batch. None for a training loop that did not tell it."""
        told = self._header["loop"].get("batch_size") is not None if self.of_loop else True
        return self.config.examples_per_batch(len(self.labels)) if told else None

    @property
    def finished(self) -> bool:
        """Whether the last iteration is recorded. A loop's recording is finished once nothing writes to it."""
        return self.num_records == self.num_planned and not (self.of_loop and self.being_written)

    @property
    def being_written(self) -> bool:
        """Whether a run is writing to it right now."""
        return any(is_being_written(path) for path in self.paths if isinstance(path, Path))

    @property
    def images(self) -> Integer[np.ndarray, "n h w channel"] | None:
        """Pixels as stored, 0 to 255 or 0 to 65,535. None if the inputs are not images."""
        return self.data.images

    @property
    def labels(self) -> Int[np.ndarray, " n"] | Float[np.ndarray, "n *target"]:
        """Class of each example, as the networks were told it; or its regression target."""
        return self._array("labels")

    @property
    def true_labels(self) -> Int[np.ndarray, " n"] | Float[np.ndarray, "n *target"]:
        """Class of each example in its data set: like `labels`, except where `noisy` says it was flipped."""
        return self._array("true_labels" if "true_labels" in self._checksums else "labels")

    @property
    def noisy(self) -> Bool[np.ndarray, " n"]:
        """Whether each label was flipped, as `--label_noise` asked."""
        return self.labels != self.true_labels

    @property
    def ids(self) -> Shaped[np.ndarray, " n"]:
        """Name of each example in its data set."""
        return self._array("ids")

    @property
    def held_out(self) -> Bool[np.ndarray, "s n"]:
        """Which examples each seed was not trained on, as `--holdout_folds` asked. None are, for a user's loop."""
        return np.stack([held_out(self.config, int(seed), len(self.labels)) for seed in self.seeds])

    @functools.cached_property
    def data(self) -> Dataset:
        """All examples, as they were given to training."""
        return read_examples(self._header, self._array)

    @property
    def example_checksums(self) -> dict[str, str]:
        """Checksums of the files that hold the examples, by file name."""
        return self._checksums

    @property
    def data_problems(self) -> list[str]:
        """What is wrong with the files that hold the examples, one line each."""
        problems = []
        for name in self._checksums:
            try:
                self._array(name)
            except RecordingError as error:
                problems.append(str(error))
        return problems

    @functools.cached_property
    def further(self) -> FurtherTraining | None:
        """What `train_dynamics.further` stored. None if it was not run.

        Raises:
            RecordingError: If it is damaged, or belongs to another recording.
        """
        path = self._root / "further"
        if self._parts or not (path / "further.json" if isinstance(path, Url) else path).exists():
            return None
        again = f"move {path} elsewhere and run train_dynamics.further again"
        try:
            header = json.loads(read_whole(path / "further.json"))
            if header["checksum"] != sealed(header)["checksum"]:
                raise ValueError("it was changed after it was written: its checksum differs")
            if header["recording"] != self._checksum:
                raise ValueError("it belongs to another recording")
            settings, checksums = header["settings"], header["arrays"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RecordingError(
                f"{path / 'further.json'} does not belong here, is damaged, or is missing ({error}); {again}"
            ) from error
        try:
            return FurtherTraining(settings, *(_load(path / f"{name}.npy", checksums.get(name)) for name in FURTHER))
        except RecordingError as error:
            raise RecordingError(f"{error}; {again}") from error

    @functools.cached_property
    def histories(self) -> Histories:
        """Measures of every example at every record, if `train_dynamics.analyze` has stored them.

        Raises:
            RecordingError: If they do not exist, or are damaged.
        """
        return Histories(self)

    def history(self, example: SupportsIndex) -> History:
        """Read what happened to one example in every seed: loss, prediction, margin, norms and alignments.

        For an unfinished recording, it ends where the stored histories end.

        Raises:
            IndexError: If there is no such example.
            InputError: If the histories do not exist, are damaged, or do not cover a finished recording.

        Example:
            >>> history = Recording("recordings/mini_mnist").history(42)
            >>> history.margin.shape, history.alignment["fc2"].shape
            ((10, 1411), (10, 1411))
        """
        try:
            return history_of(self, self.histories, example)
        except InputError:
            self.__dict__.pop("histories", None)  # they may be made, or made again, before the next call
            raise

    def gradients_of(self, example: SupportsIndex, layer: str) -> Float[np.ndarray, "s t ..."]:
        """Read one example's gradient with respect to a parameter at all records, `[s, t, i, o]`.

        This is fast if the recording has histories, because they hold a checksum for every few examples. Otherwise it
        reads everything.

        Raises:
            KeyError: If the layer was not recorded, or only its measures or a sketch.
            IndexError: If there is no such example.
            RecordingError: If the recording is damaged.

        Example:
            >>> Recording("recordings/mini_mnist").gradients_of(42, "fc2").shape
            (10, 1411, 8, 10)
        """
        return gradients_of(self, layer, example)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing to the recording within this context.

        Raises:
            InputError: If another process is writing to it.
        """
        check_local(self.path)
        with locked(self._root, busy(self.path), PATIENCE):
            yield

    def save_further(self, further: FurtherTraining) -> None:
        """Store the results of further training, completely or not at all.

        Raises:
            RecordingError: If they cannot be written.
        """
        files = {name: npy(getattr(further, name)) for name in FURTHER}
        header = {
            "recording": self._checksum,
            "settings": further.settings,
            "arrays": {name: checksum_of(content) for name, content in files.items()},
            "versions": versions(),
        }

        try:
            with written_whole(self._root / "further") as new:
                save_arrays(new, files)
                (new / "further.json").write_text(json.dumps(sealed(header), indent=2) + "\n")
        except OSError as error:
            raise RecordingError(f"{self.path / 'further'} could not be written: {error.strerror or error}") from error

    def inputs(self) -> Tree:
        """Compute the inputs as the network saw them, for example images standardised, `[n, h, w, channel]`."""
        return network_inputs(self.data, self.config)

    def blocks(self) -> Iterator[Block]:
        """Iterate over the blocks, in order of iteration."""
        yield from self._blocks

    def parameters(self, t: SupportsIndex) -> dict[str, Any]:
        """Read the weights after `t` updates, as nested dicts like the network's own; each array is `[s, ...]`.

        For the default network: `{"fc1": {"kernel": [s, in, out], "bias": [s, out]}, ...}`.
        """
        return self._nested("parameters", self.contents.parameters, t)

    def variables(self, t: SupportsIndex) -> dict[str, Any]:
        """Read the network's other arrays after `t` updates, such as the statistics of batch normalisation."""
        return self._nested("variables", self.contents.state, t)

    def _nested(self, kind: str, names: Sequence[str], t: SupportsIndex) -> dict[str, Any]:
        block, found = self._block(t), {}
        for name in names:
            *parents, leaf = name.split(".")
            place = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, found)
            place[leaf] = block.read(f"{kind}.{name}", t)
        return found

    def loss(self, t: SupportsIndex) -> Float[np.ndarray, "s n"]:
        """Read the loss of each example after `t` updates, in nats."""
        return self._block(t).read("loss", t)

    def predictions(self, t: SupportsIndex) -> Integer[np.ndarray, "s n"]:
        """Read the most likely class of each example after `t` updates.

        Raises:
            KeyError: If the network is not a classifier.
        """
        return self._block(t).read("prediction", t)

    def correct(self, t: SupportsIndex) -> Bool[np.ndarray, "s n"] | Float[np.ndarray, "s n"]:
        """Tell which examples are classified correctly after `t` updates. NaN for a regression."""
        if not self.contents.classes:
            return np.full((len(self.seeds), len(self.labels)), np.nan, np.float32)
        return self.predictions(t) == self.labels

    @property
    def classes(self) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
        """Class of each example, and the class names. For a regression, all examples are in one class."""
        if self.contents.classes:
            return self.labels, self.class_names
        return np.zeros(len(self.labels), np.int32), ("all",)

    def outputs(self, t: SupportsIndex) -> Float[np.ndarray, "s n ..."]:
        """Read the networks' outputs for each example after `t` updates; for a classifier these are the logits.

        Raises:
            KeyError: If outputs were not stored: for the default network, whose class probabilities follow from its
                gradients, and for a loop whose loss returns none.
        """
        return self._block(t).read("outputs", t)

    def probabilities(self, t: SupportsIndex) -> Float[np.ndarray, "s n c"]:
        """Compute the class probabilities of each example after `t` updates, from what was stored.

        For the default network they follow from the gradient of softmax cross-entropy at the logits, which is p minus
        the one-hot label. Adding the one-hot label back is exact for the other classes. For the label itself, where p -
        1 would have rounded a small p away, p is exp(-loss). For other networks they are the softmax of the outputs.

        Raises:
            KeyError: If the network is not a classifier.
        """
        self._check_classes()
        if not self.contents.output_layer:
            return softmax(self.outputs(t))
        cotangent = self._block(t).read(f"cotangent.{self.contents.output_layer}", t)
        return probabilities_of(cotangent, self.loss(t), self.labels)

    def cleanlab(self, t: SupportsIndex, held_out: bool = False) -> CleanlabInputs:
        """Return labels and class probabilities after `t` updates, as cleanlab's `find_label_issues` takes them.

        The probabilities are *in-sample*: the networks were trained on these very examples, and may have learned their
        wrong labels. cleanlab expects probabilities from networks that never saw the example. `held_out` gives those,
        for a recording made with `--holdout_folds`. Without it, an early `t`, before wrong labels are learned, comes
        closer to them than the end of training.

        Args:
            t: Iteration, in updates.
            held_out: Whether to average only over the seeds that were not trained on the example.

        Raises:
            KeyError: If the network is not a classifier.
            IndexError: If there is no record of iteration `t`.
            InputError: If `held_out` is asked for, and some example was held out of no seed.

        Example:
            >>> find_label_issues(**Recording("recordings/mini_mnist").cleanlab(t=470)._asdict()).sum()
        """
        probabilities, counted = self.probabilities(t), np.ones((len(self.seeds), len(self.labels)), bool)
        if held_out:
            counted = self.held_out
            if seen := int(np.count_nonzero(~counted.any(axis=0))):
                raise InputError(
                    f"{self.path}: {pluralise(seen, 'example')} of {len(self.labels):,} were held out of no seed; "
                    "train with --holdout_folds=5 and 5 seeds or more"
                )
        mean = np.einsum("snc,sn->nc", probabilities, counted, dtype=np.float64)
        return CleanlabInputs(self.labels, mean / mean.sum(axis=-1, keepdims=True))

    def to_xarray(self, chunks: Any = None) -> "xarray.Dataset":
        """Return everything recorded as an `xarray.Dataset` that reads from disk only what you access.

        Dimensions are `seed`, `iteration`, `example`, `class_name`, and one for each axis of a parameter. If only one
        kernel's gradients were recorded, its axes are `in` and `out`; other axes are prefixed with their layer:
        `fc1_in`, `fc1_out`. Coordinates are `seed`, `iteration`, `example` (the `ids`, or the index if these are not
        unique), `id`, `label`, and for a classifier `label_name` and `class_name`.

        Variables are `loss` (in nats for a classifier); for a classifier `prediction`, `correct` and `probabilities`;
        `outputs`, if they were stored; `parameters.<path>` and `variables.<path>`; and for each recorded layer either
        `gradient.<layer>` (multiplied out if it was stored as factors), or `sketch.<layer>`, or `norm.<layer>`,
        `product.<layer>` and `alignment.<layer>`.

        An unfinished recording gives the records so far. Call it again to get later ones.

        Args:
            chunks: How to divide the data into Dask arrays, by dimension, in Dask's own notation. None makes no Dask
                arrays. `{}` makes each block a chunk, or as many of its iterations as fit into 128 MiB. Each task opens
                the recording itself, wherever it runs, reads the iterations of its chunk, and compares their checksums.
                If you divide along another dimension than `iteration`, the same data are read several times.

        Raises:
            InputError: If xarray (or, for `chunks`, Dask) is not installed, if `chunks` names an unknown dimension, or
                if there is no record yet.

        Example:
            >>> data = Recording("recordings/mini_mnist").to_xarray()
            >>> data["gradient.fc2"].sel(seed=0, iteration=100).isel(example=42).shape  # reads one iteration
            (8, 10)
            >>> data = Recording("recordings/mini_mnist").to_xarray(chunks={"iteration": 50})
            >>> data.correct.mean("example").compute().shape  # by as many tasks at once as there are processors
            (10, 1411)
        """
        if importlib.util.find_spec("xarray") is None:
            raise InputError("to_xarray() needs the package xarray, which is not installed: pip install xarray")
        if chunks is not None and not isinstance(chunks, Mapping):
            raise InputError(
                f"to_xarray(chunks={chunks!r}): must be lengths by dimension, as {{'iteration': 50}} or {{}}"
            )
        if chunks is not None and importlib.util.find_spec("dask") is None:
            raise InputError(
                'to_xarray(chunks=...) needs the package dask, which is not installed: pip install "dask[array]"'
            )
        from train_dynamics.recording.to_xarray import to_xarray  # a second to import

        return to_xarray(self, chunks)

    def each_error(
        self, block: Block, iterations: Int[np.ndarray, " some"] | None = None
    ) -> Iterator[Float[np.ndarray, "s n c"]]:
        """Yield class probabilities minus the one-hot label, for each iteration of a block or for some of them.

        Raises:
            KeyError: If the network is not a classifier.
        """
        self._check_classes()
        if self.contents.output_layer:
            yield from block.each(f"cotangent.{self.contents.output_layer}", iterations)
            return
        label = self.labels[:, None] == np.arange(len(self.class_names))
        for outputs in block.each("outputs", iterations):
            yield softmax(outputs) - label

    def _check_classes(self) -> None:
        if not self.contents.classes:
            raise KeyError("the network is not a classifier, so there are no class probabilities")

    @property
    def replayable(self) -> bool:
        """Whether it has the default network and loss, which can be run again here without JAX."""
        ordinary = self.config.model == "mlp" and self.config.loss in ("", "softmax_cross_entropy")
        return ordinary and self.contents.classes

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the recorded layers."""
        return tuple(self.contents.layers)

    @property
    def gradient_layers(self) -> tuple[str, ...]:
        """Names of the layers whose gradients or sketches were stored, and not only their measures."""
        return tuple(name for name, kept in self.contents.layers.items() if kept.has_gradient)

    def kept(self, layer: str) -> KeptLayer:
        """Return what was stored for a layer.

        Raises:
            KeyError: If the layer was not recorded.
        """
        if layer not in self.contents.layers:
            raise KeyError(f"layer {layer!r} was not recorded; recorded: {', '.join(self.layers)}")
        return self.contents.layers[layer]

    def gradients(self, layer: str, t: SupportsIndex) -> Float[np.ndarray, "s n ..."]:
        """Read the gradient of each example's loss with respect to a parameter, after `t` updates.

        Args:
            layer: Name of a recorded layer.
            t: Iteration: 0 is the initialisation.

        Returns:
            Gradients, whose last axes have the parameter's own shape: `[s, n, i, o]` for a dense layer's kernel, in
            either layout. For the input layer this is large: 188 MB for one seed of 6,000 MNIST examples and 8 units.

        Raises:
            KeyError: If the layer was not recorded, or only its measures or a sketch.
            IndexError: If there is no record of iteration `t`.
        """
        kept = self.kept(layer)
        if kept.layout == "dense":
            return self._block(t).read(f"gradient.{kept.key}", t)
        if kept.layout != "factored":
            raise KeyError(f"of layer {layer!r} only {kept.layout} were recorded; --gradient_layout=factored keeps all")
        return kept.multiply(*self.factors(layer, t))

    def factors(
        self, layer: str, t: SupportsIndex
    ) -> tuple[Float[np.ndarray, "#s n *p i"], Float[np.ndarray, "s n *p o"]]:
        """Read activation and cotangent at one iteration. Their product, summed over positions, is the gradient."""
        kept = self.kept(layer)
        cotangent = self._block(t).read(f"cotangent.{kept.key}", t)
        if kept.of_inputs:  # alike for every seed
            return self._flat_inputs(), cotangent
        return self._block(t).read(f"activation.{kept.key}", t), cotangent

    def measures(self, layer: str, t: SupportsIndex) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "s n"]]:
        """Read each gradient's norm and its product with the layer's mean gradient, if these were stored."""
        kept, block = self.kept(layer), self._block(t)
        return tuple(block.read(f"{kind}.{kept.key}", t) for kind in ("norm", "product"))

    def vectors(self, layer: str, t: SupportsIndex) -> tuple[Float[np.ndarray, "#s n _"], ...]:
        """Read the vectors that examples are compared by: two factors, or flat gradients or sketches."""
        kept, block = self.kept(layer), self._block(t)
        return self._vectors(kept, tuple(block.read(name, t) for name in kept.arrays))

    def each_gradient(
        self, block: Block, layer: str, iterations: Int[np.ndarray, " some"] | None = None
    ) -> Iterator[tuple[Float[np.ndarray, "#s n _"], ...]]:
        """Yield what `vectors` returns, for each iteration of a block or for some of them, ascending."""
        kept = self.kept(layer)
        rows = zip(*(block.each(name, iterations) for name in kept.arrays), strict=True)
        return (self._vectors(kept, arrays) for arrays in rows)

    def _vectors(self, kept: KeptLayer, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        if not kept.has_gradient:
            raise KeyError(f"of layer {kept.name!r} only measures were recorded, so examples cannot be compared")
        if kept.of_inputs:
            return self._flat_inputs(), *arrays
        if kept.layout == "factored" and arrays[0].ndim > 3:  # several positions
            arrays = (rebuild(kept.layer, *arrays),)
        return tuple(array.reshape(*array.shape[:2], -1) for array in arrays)

    def _flat_inputs(self) -> Float[np.ndarray, "1 n i"]:
        return self.inputs().reshape(1, len(self.labels), -1)

    def _block(self, t: SupportsIndex) -> Block:
        try:
            row = row_of(self.iterations, t)
        except IndexError as error:
            raise IndexError(f"{error} of {self.path}") from None
        return self._blocks[np.searchsorted(self._ends, row, side="right")]

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " block"]:
        """Number of records up to the end of each block."""
        return np.cumsum([len(block.iterations) for block in self._blocks])

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = _load(self._root / "dataset" / f"{name}.npy", self._checksums.get(name))
        return self._arrays[name]


def opened(paths: str) -> Recording:
    """Open the recording that a flag names: a directory, or several, comma separated."""
    several = [paths] if os.path.exists(paths) else paths.split(",")
    if len(several) > 1 and "" in several:
        raise RecordingError(f"{paths} names no directory before or after a comma")
    return Recording(several if len(several) > 1 else paths)


def _is_by_several(path: AnyPath) -> bool:
    """Tell whether a directory holds the parts of several processes."""
    try:
        return (path / parts.NAME).is_file()
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from error


def softmax(outputs: Float[np.ndarray, "*lead c"]) -> Float[np.ndarray, "*lead c"]:
    """Turn logits into class probabilities.

    Example:
        >>> softmax(np.array([0.0, 0.0]))
        array([0.5, 0.5])
    """
    odds = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def probabilities_of(
    cotangent: Float[np.ndarray, "s n c"], loss: Float[np.ndarray, "s n"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "s n c"]:
    """Compute class probabilities from the gradient at the logits; see `Recording.probabilities`."""
    label = labels[:, None] == np.arange(cotangent.shape[-1])
    return np.where(label, np.where(cotangent > -0.5, cotangent + 1, np.exp(-loss)[..., None]), cotangent)


def _load(path: AnyPath, checksum: str | None) -> np.ndarray:
    """Read an array from a NumPy file, and compare its checksum."""
    try:
        content = read_whole(path)
        if checksum_of(content) != checksum:
            raise ValueError("it was changed after it was written: its checksum differs")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path} is damaged or missing: {error}") from error
