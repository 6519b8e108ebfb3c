"""What MkDocs fills in when it builds the site: the flags of each command, as its `--help` has them.

`docs/FLAGS.md` has a line `<!-- flags: NAME -->` for each; see mkdocs.yml.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- flags: (\w+) -->")


def flags_of(command: str) -> dict[str, tuple[str, str]]:
    """Ask a command for its own flags: what each means, and its default."""
    asked = [sys.executable, "-m", f"train_dynamics.{command}", "--helpxml"]
    said = subprocess.run(asked, capture_output=True, check=True, cwd=ROOT).stdout
    own = (flag for flag in ElementTree.fromstring(said).iter("flag") if flag.findtext("key") == "yes")
    return {flag.findtext("name", ""): (flag.findtext("meaning", ""), flag.findtext("default", "")) for flag in own}


def listed(flags: dict[str, tuple[str, str]]) -> str:
    """Lay flags out as a list of definitions in Markdown."""
    found = []
    for name, (meaning, default) in flags.items():
        said = f", by default `{default}`" if default not in ("", "None", "[]") else ""
        found.append(f"`--{name}`{said}\n:   {meaning.replace('*', chr(92) + '*')}\n")
    return "\n".join(found)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put lists of flags where a page asks for them."""
    commands = MARK.findall(markdown)
    with ThreadPoolExecutor() as threads:
        lists = dict(zip(commands, threads.map(lambda name: listed(flags_of(name)), commands), strict=True))
    return MARK.sub(lambda mark: lists[mark[1]], markdown)
