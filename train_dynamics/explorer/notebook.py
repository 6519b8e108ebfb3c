"""The explorer inside a notebook."""

import html
import os
from collections.abc import Sequence

from train_dynamics.explorer.explored import opened_for_showing
from train_dynamics.explorer.server import Server
from train_dynamics.recording.reader import Recording


class Explorer:
    """Shows a recording's explorer below a notebook cell, as `train_dynamics.explore` does in a browser.

    Its server runs in this process until you call `close`. The browser must reach this machine as 127.0.0.1. If the
    kernel runs elsewhere, forward the port of `url` (`ssh -L`), or pass a `port` that is already forwarded.

    Args:
        recording: A `Recording`, or its directory; or several directories, which are read as one.
        compare: Another recording of the same examples.
        height: Height of the frame, in pixels.
        port: Port of the server. 0 takes any free port.

    Attributes:
        url: Address of the page, which you can also open in a browser.

    Raises:
        InputError: If this is not a recording, if `compare` has other examples, or if the port is in use.

    Example:
        >>> Explorer("recordings/mini_mnist")  # in a cell of its own
        Explorer at http://127.0.0.1:40123/
    """

    def __init__(
        self,
        recording: Recording | str | os.PathLike | Sequence[str | os.PathLike],
        compare: Recording | str | os.PathLike | None = None,
        height: int = 860,
        port: int = 0,
    ) -> None:
        opened = [one if isinstance(one, Recording | None) else Recording(one) for one in (recording, compare)]
        self._explored = opened_for_showing(*opened)
        self._server = Server(self._explored, port=port, framed=True)
        self.url, self.height = self._server.url, height

    def __repr__(self) -> str:
        return f"Explorer at {self.url.partition('?')[0]}"

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{html.escape(self.url)}" width="100%" height="{self.height}" style="border:0" '
            'allow="clipboard-write" title="train_dynamics explorer"></iframe>'
        )

    def close(self) -> None:
        """Stop the server. The page then gets no more data."""
        self._server.close()
