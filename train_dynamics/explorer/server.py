"""Serves the page and arrays of the recordings it shows, and nothing else, to those who know the token."""

import contextlib
import errno
import ipaddress
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from train_dynamics.config import InputError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise InputError(
        f"exploring needs the package {error.name}: pip install 'train-dynamics[explore]'; --export=page.html does not"
    ) from error

from train_dynamics.explorer.explored import Explored
from train_dynamics.explorer.page import page, policy
from train_dynamics.explorer.shown import HISTORY, about, encoded, json_bytes, looks
from train_dynamics.recording.format import RecordingError

MOST_EXAMPLES = 2_000  # pictures or texts in one answer
BODY_BYTES = 8 * 2**20


def answer(explored: Explored, path: str, ask: Callable[[str], str], body: Any) -> tuple[bytes, str]:
    """Answer a request from the page.

    Args:
        explored: What the page shows.
        path: What is asked for.
        ask: Function that returns a value of the query by name.
        body: Indices of examples, if there are many.

    Returns:
        The bytes, and how numbers are encoded in them; `json` if they are not numbers.

    Raises:
        KeyError, IndexError, ValueError: If there is no such thing.
        RecordingError: If the recording is damaged.
    """
    shown = list(explored.recordings.values())
    if path == "about":
        if explored.problem:
            raise RecordingError(explored.problem)
        with contextlib.suppress(InputError):  # what was read before can be shown even so
            explored.grow()
        return json_bytes(about(explored.recordings, explored.scored)), "json"
    if path == "score":
        return explored.scored.scores[ask("name")].astype("<f4").tobytes(), "float32"
    if path in ("pictures", "texts"):
        examples = _places(body, len(shown[0].recording.labels))
        if len(examples) > MOST_EXAMPLES:
            raise ValueError(f"more than {MOST_EXAMPLES} examples")
        found = looks(shown[0].recording, examples)
        return (json_bytes(found), "json") if isinstance(found, list) else (found.tobytes(), "uint8")
    one = shown[_whole(ask("recording"), len(shown))]
    if path == "status":
        explored.grow()
        return json_bytes(one.status(_whole(ask("known"), one.num_records + 1))), "json"
    s = _whole(ask("seed"), len(one.recording.seeds))
    if path == "frames":
        measure, records = ask("measure"), one.num_records + 1
        start, stop, step = (_whole(ask(name), records) for name in ("from", "to", "step"))
        encoding = one.encoding(measure)
        return encoded(one.read(measure, s, start, stop, step), encoding).tobytes(), encoding
    if path == "curves":
        return one.curves(s).astype("<f4").tobytes(), "float32"
    layer = ask("layer")
    if layer not in one.recording.layers:
        raise KeyError(layer)
    if path == "history":
        example = _whole(ask("example"), len(one.recording.labels))
        return one.history(s, layer, [example])[..., 0].astype("<f4").tobytes(), "float32"
    if path == "band":
        band = one.band(s, layer, _places(body, len(one.recording.labels)))
        return band.reshape(3 * len(HISTORY), -1).astype("<f4").tobytes(), "float32"
    if path == "groups":
        return json_bytes(one.groups(s, layer, _whole(ask("iteration"), 2**62))), "json"
    raise KeyError(path)


def application(explored: Explored, token: str, framed: bool = False) -> "Guard":
    """Make the web application of a page.

    Args:
        explored: What it shows.
        token: The token that every request must have.
        framed: Whether other pages may frame it, as a notebook does.
    """

    async def front(_: Request) -> Response:
        headers = {"Content-Security-Policy": policy(framed), "Cache-Control": "no-store"}
        return Response(page(), media_type="text/html; charset=utf-8", headers=headers)

    async def api(request: Request) -> Response:
        body = None
        if request.method == "POST":
            if int(request.headers.get("content-length", BODY_BYTES + 1)) > BODY_BYTES:
                return PlainTextResponse("too long", 413)
            try:
                body = await request.json()
            except (ValueError, RecursionError):
                return PlainTextResponse("not JSON", 400)
        return await run_in_threadpool(respond, request.path_params["path"], request.query_params, body)

    def respond(path: str, query: Any, body: Any) -> Response:
        try:
            content, encoding = answer(explored, path, query.__getitem__, body)
        except InputError as error:
            return PlainTextResponse(str(error), 500)
        except (KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            return PlainTextResponse(f"there is no such thing: {error}", 404)
        kind = "application/json" if encoding == "json" else "application/octet-stream"
        return Response(content, media_type=kind, headers={"X-Encoding": encoding, "Cache-Control": "no-store"})

    routes = [Route("/", front), Route("/api/{path}", api, methods=["GET", "POST"])]
    return Guard(Starlette(routes=routes), token)


class Guard:
    """Refuses requests without the token, and requests that other web pages make through the user's browser.

    A foreign page can make its own name point to this machine (DNS rebinding). The browser then sends that name as
    `Host`, so `Host` must be a name of this machine.
    """

    def __init__(self, app: Starlette, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query_params.get(
            "token", ""
        )
        if not is_ours(host) or (origin is not None and urlsplit(origin).netloc != host):
            refused = PlainTextResponse("This is not the address of this server.", 403)
        elif not secrets.compare_digest(given.encode(), self.token.encode()):
            refused = PlainTextResponse("Open the address with its token, as train_dynamics.explore printed it.", 403)
        else:
            refused = self.app
        await refused(scope, receive, send)


def is_ours(host: str) -> bool:
    """Tell whether a `Host` is a name of this machine: an IP address, localhost, or its own host name.

    Example:
        >>> is_ours("127.0.0.1:8000"), is_ours("localhost"), is_ours("evil.example:8000")
        (True, True, False)
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in ("localhost", socket.gethostname().lower())
    return True


class Server:
    """A server in a thread of its own.

    Args:
        explored: What it shows.
        host: Address to listen on.
        port: Port. 0 takes any free one.
        framed: Whether other pages may frame it.

    Attributes:
        url: Address of the page, with its token.

    Raises:
        InputError: If it cannot listen there.
    """

    def __init__(self, explored: Explored, host: str = "127.0.0.1", port: int = 0, framed: bool = False) -> None:
        token = secrets.token_urlsafe(24)
        self._socket = _listening(host, port)
        name = self._socket.getsockname()[0]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/?token={token}"
        config = uvicorn.Config(application(explored, token, framed), log_level="error", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OverflowError:
        raise InputError.flag("port", port, "must be 0 to 65535; 0 takes a free one") from None
    except OSError as error:
        unknown = (error.errno or 0) < 0 or error.errno == errno.EADDRNOTAVAIL  # names are looked up by other numbers
        if unknown:
            raise InputError.flag("host", host, "is not an address of this machine") from error
        in_use = error.errno == errno.EADDRINUSE
        why = "is in use; choose another, or 0 for a free one" if in_use else f"cannot be used: {error.strerror}"
        raise InputError.flag("port", port, why) from error


def _whole(text: str, below: int) -> int:
    number = int(text)
    if not 0 <= number < below:
        raise IndexError(f"{number} is not below {below}")
    return number


def _places(body: Any, below: int) -> list[int]:
    if not isinstance(body, list) or not body or not all(type(n) is int and 0 <= n < below for n in body):
        raise ValueError("examples must be a list of their places")
    return np.asarray(body).tolist()
