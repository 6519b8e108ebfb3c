"""Makes the explorer's page: one HTML file with its script and style inside, and nothing from elsewhere."""

import base64
import functools
import hashlib
from importlib import resources

ASSETS = resources.files(__package__) / "assets"


@functools.cache
def policy(framed: bool = False) -> str:
    """Return what the page may do: run its own script and style, and ask its own server."""
    script, style = (_hash(_asset(name)) for name in ("explorer.js", "explorer.css"))
    rules = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if not framed:
        rules["frame-ancestors"] = "'none'"
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def page(data: str = "") -> str:
    """Put the page together.

    Args:
        data: A recording as JSON, as `export` packs it. Without it, the page asks the server that it came from.
    """
    held = data.replace("<", "\\u003c")  # so that nothing in it ends the element
    parts = {
        "%POLICY%": policy(framed=True),  # a `meta` element cannot say who may frame it
        "%STYLE%": _asset("explorer.css"),
        "%DATA%": f'<script type="application/json" id="recording">{held}</script>' if data else "",
        "%SCRIPT%": _asset("explorer.js"),
    }
    text = _asset("explorer.html")
    for name, part in parts.items():
        before, _, after = text.partition(name)
        text = before + part + after
    return text


@functools.cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
