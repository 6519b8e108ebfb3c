"""Explore a recording in the browser: a page where all examples move as you drag a slider through training.

python -m train_dynamics.explore --recording=recordings/mini_mnist
"""

import os
import sys
import threading
import webbrowser
from pathlib import Path

from absl import flags

from train_dynamics.commands import NumberParser, print_line, run, stop_on_signals
from train_dynamics.config import InputError, pluralise
from train_dynamics.recording.reader import opened

RECORDING = flags.DEFINE_string(
    "recording",
    "recordings/mini_mnist",
    "Directory of the recording, even while it is still being written; or several, comma separated, with the same "
    "examples and different seeds, which are read as one.",
)
COMPARE = flags.DEFINE_string(
    "compare", None, "Another recording of the same examples to show beside it. Seeds are matched by position."
)
ANALYSIS = flags.DEFINE_string(
    "analysis",
    None,
    "Directory of an analysis. The page can colour, sort and filter by its scores and chunks. Default: 'analysis' "
    "inside the recording; without an analysis, the page shows no scores.",
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on. Anyone who can reach it still needs the token in the page's address."
)
PORT = flags.DEFINE(NumberParser(int), "port", 0, "Port to listen on. 0 takes any free port.")
NO_BROWSER = flags.DEFINE_boolean("no_browser", False, "Print the address without opening a browser.")
EXPORT = flags.DEFINE_string(
    "export",
    None,
    "Start no server. Write the page with the data of one seed into this file instead, at most 15 MB. It opens "
    "with a double click and needs nothing else.",
)
SEED = flags.DEFINE(NumberParser(int), "seed", None, "Seed to export. Default: the first seed.")
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Let --export replace the file if it exists.")


def main() -> None:
    """Run the command."""
    if not HOST.value:
        raise InputError.flag("host", HOST.value, "must be an address of this machine; 0.0.0.0 stands for all of them")
    recording = opened(RECORDING.value)
    output = Path(EXPORT.value) if EXPORT.value else None
    if output:
        from train_dynamics.explorer import export

        export.check_output(output, OVERWRITE.value)
        seed = recording.seeds[0] if SEED.value is None else SEED.value
        if seed not in recording.seeds:
            known = ", ".join(map(str, recording.seeds))
            raise InputError.flag("seed", seed, f"was not recorded; recorded: {known}")
    from train_dynamics.explorer.explored import opened_for_showing

    compared = opened(COMPARE.value) if COMPARE.value else None
    explored = opened_for_showing(recording, compared, ANALYSIS.value, print_line)
    if output:
        size, records = export.export(explored, int(seed), output)
        print_line(
            f"Wrote {output}: seed {seed}, {pluralise(records, 'record')}, {size / 1e6:.1f} MB; open it in a browser"
        )
        return
    from train_dynamics.explorer.server import Server

    server = Server(explored, HOST.value, PORT.value)
    print_line(f"{recording.path} is shown at {server.url}")
    if HOST.value == "127.0.0.1" and os.environ.get("SSH_CONNECTION"):
        print_line(
            f"From elsewhere: ssh -L {server.port}:127.0.0.1:{server.port} THIS_MACHINE, and open that address there"
        )
    print_line("Ctrl-C ends it")
    stopped = stop_on_signals("explore: stopped")
    if not NO_BROWSER.value and not _open(server.url):
        print_line(
            "No browser could be opened here; open the address in one, from elsewhere by ssh -L "
            f"{server.port}:127.0.0.1:{server.port} THIS_MACHINE"
        )
    done = threading.Event()
    while not stopped:
        done.wait(0.2)
    server.close()
    sys.exit(0)


def _open(url: str) -> bool:
    """Open a browser, if there is one and a screen to show it on."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


if __name__ == "__main__":
    run("explore", main)
