"""Lineages that an analysis has stored, so that groups have the same names and colours wherever they are shown."""

import functools
import io
import json

import numpy as np
from jaxtyping import Int

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.dynamics.lineages import link
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import AnyPath, Url
from train_dynamics.study.contention import drawn
from train_dynamics.study.lineages import MOST_FOLLOWED

FILE = "cone_lineage_members.parquet"
NAMES = ["iteration", "lineage", "example"]


class StoredLineages:
    """Which lineage each cone of a moment belongs to.

    Args:
        table: The table that `tables.write_lineage_members` wrote.
        num_examples: Number of examples.

    Raises:
        OSError, ValueError: If the table is damaged.
    """

    def __init__(self, table: bytes, num_examples: int) -> None:
        from pyarrow import parquet  # a third of a second, for nothing where there is no such table

        self._table, self._num_examples = table, num_examples
        self._followed = np.isin(np.arange(num_examples), drawn(num_examples, MOST_FOLLOWED))
        columns = parquet.ParquetFile(io.BytesIO(table)).schema_arrow.names
        if not {"seed", "layer", *NAMES} <= set(columns):
            raise ValueError(f"has columns {', '.join(columns)}")
        self._covers = functools.lru_cache(4)(self._read)

    def _read(self, seed: int, layer: str) -> dict[int, Int[np.ndarray, " n"]]:
        """Read the lineage of each example, -1 for none, at each iteration that has any."""
        from pyarrow import parquet

        chosen = [("seed", "=", seed), ("layer", "=", layer)]
        found = parquet.read_table(io.BytesIO(self._table), columns=NAMES, filters=chosen)
        iteration, lineage, example = (found[name].to_numpy() for name in NAMES)
        covers = {}
        for t in np.unique(iteration).tolist():
            here = iteration == t
            covers[t] = np.full(self._num_examples, -1)
            covers[t][example[here]] = lineage[here]
        return covers

    def at(self, seed: int, layer: str, iteration: int) -> Int[np.ndarray, " n"]:
        """Return the lineage of each example, -1 for none, at the nearest iteration that has any."""
        covers = self._covers(seed, layer)
        if not covers:
            return np.full(self._num_examples, -1)
        return covers[min(covers, key=lambda t: abs(t - iteration))]

    def of_cones(self, seed: int, layer: str, iteration: int, cone: Int[np.ndarray, " n"]) -> Int[np.ndarray, " cone"]:
        """Find the lineage that each cone continues, by linking it with the nearest followed cover.

        Args:
            seed: The seed.
            layer: The layer.
            iteration: Iteration of the cones.
            cone: The cone of each example, -1 for none.

        Returns:
            The lineage of each cone; -1 for none.
        """
        found = np.full(int(cone.max(initial=-1)) + 1, -1)
        stored = self.at(seed, layer, iteration)
        names, places = np.unique(stored[stored >= 0], return_inverse=True)
        cover = np.full(self._num_examples, -1)
        cover[stored >= 0] = places
        before = link(cover, np.where(self._followed, cone, -1))
        found[: len(before)] = np.append(names, -1)[before]
        return found


def read_lineages(recording: Recording, analysis: AnyPath, flag: str = "analysis") -> StoredLineages | None:
    """Read the lineages that an analysis of a recording wrote. None if there are none.

    Args:
        recording: The recording.
        analysis: Directory of its analysis.
        flag: Name of the flag that named this directory.

    Raises:
        InputError: If they are damaged, or if they are of another recording.
    """
    path = analysis / FILE
    if (isinstance(path, Url) and len(recording.paths) > 1) or not path.exists():
        return None
    try:
        about = json.loads((analysis / "analysis.json").read_bytes())
        if StudyConfig.from_dict(about["config"]) != recording.config:
            raise InputError.flag(flag, analysis, f"is an analysis of another recording, {about['recording']}")
        return StoredLineages(path.read_bytes(), len(recording.labels))
    except (OSError, ValueError, KeyError) as error:
        raise InputError.flag(flag, analysis, f"has a damaged {FILE}: {error}") from error
