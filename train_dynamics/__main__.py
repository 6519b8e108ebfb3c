"""All commands under one name: `train-dynamics COMMAND --FLAG...`, or `python -m train_dynamics COMMAND`."""

import ast
import runpy
import sys
from pathlib import Path

COMMANDS = ("train", "analyze", "explore", "animate", "verify", "record", "further")


def main() -> None:
    """Run the command named first. Without one, list the commands."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = rest
        runpy.run_module(f"train_dynamics.{name}", run_name="__main__", alter_sys=True)
        return
    if name not in ("-h", "--help", "help"):
        sys.exit(f"train-dynamics: {name!r} is not a command; the commands are {', '.join(COMMANDS)}")
    print("train-dynamics COMMAND [--FLAG...]: watch a neural network learn, example by example\n")
    for command in COMMANDS:
        # From the text of the file: to import it takes seconds.
        text = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
        print(f"  {command:9}{(ast.get_docstring(ast.parse(text)) or '').splitlines()[0]}")
    print("\ntrain-dynamics COMMAND --help lists the flags of each.")


if __name__ == "__main__":
    main()
