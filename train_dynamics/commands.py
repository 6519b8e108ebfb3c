"""Shared by all commands: error messages of one line, and flags whose errors say what is expected."""

import contextlib
import gc
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from train_dynamics.config import FIELDS, InputError, StudyConfig, flag_name

flags.disclaim_key_flags()  # what is defined here is of the command that asks for it
FIRST = {  # the flags that matter first, of the commands that have many
    "train": ("recording", "dataset", "model"),
    "analyze": ("recording", "output", "parts"),
    "explore": ("recording", "compare", "export"),
    "animate": ("recording", "output", "seed"),
    "record": ("recording", "checkpoints", "loss"),
}
GROUPS = {  # the flag that each group of flags in `--help` begins with, in the order of their definition
    "dataset": "Data",
    "model": "Network",
    "optimizer": "Training",
    "layers": "What is recorded",
    "host_devices": "Devices and planning",
    "distributed": "Several processes",
    "cone_cosine": "Cones",
    "opposed_to": "Contention",
    "score_iteration": "Scores",
    "rank_by": "Ranking",
}
OTHERS, QUOTE, HARD = "Other flags", "'", "\0"  # a space at which no line ends
WIDEST = 100


def run(name: str, main: Callable[[], None]) -> None:
    """Run a command whose flags are already defined, `--recording` among them.

    A mistake in the user's input ends the command with one line on the standard error and exit status 1. Ctrl-C ends it
    with status 130, unless the command handles Ctrl-C itself.
    """
    _open_streams()
    seldom_collect_garbage()
    try:
        app.run(lambda rest: call(name, main, rest), flags_parser=lambda argv: parse(name, argv))
    except SystemExit as ended:
        code = ended.code
    except UnwritableError as error:
        code = error.reason and f"{name}: the standard output cannot be written: {error.reason}"
    if code and isinstance(code, str):
        print(code, file=sys.stderr, flush=True)
    if code not in (0, None):
        os._exit(code if isinstance(code, int) else 1)  # to end an output that broke would fail again
    gc.freeze()  # ending would search all modules for garbage first, for half a second


class UnwritableError(Exception):
    """The standard output cannot be written. Not an `OSError`, because a command's own files may raise those.

    Attributes:
        reason: Why. Empty if the reader of a pipe has closed it, which is no mistake.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = "" if isinstance(error, BrokenPipeError) else error.strerror


def define_code_flags(purpose: str) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Define `--model` and `--loss`, with which the user allows a recording's own code to be run again."""
    text = (
        "that the recording was made with, word for word, if it is your own code. The command then runs that code again"
        f"{purpose}, unless it has changed since. Without this flag, no code that a recording names is run"
    )
    return (
        flags.DEFINE_string("model", None, f"The --model {text}."),
        flags.DEFINE_string("loss", None, f"The --loss {text}."),
    )


def print_line(line: str) -> None:
    """Print a line for the user.

    Raises:
        UnwritableError: If the standard output cannot be written.
    """
    with _output():
        print(line, flush=True)


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Turn errors of writing to the standard output into `UnwritableError`."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(error) from error


def _open_streams() -> None:
    """Open streams that the shell has closed (`2>&-`) as /dev/null, so that no other file takes their place."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))


def seldom_collect_garbage() -> None:
    """Make Python collect garbage a hundred times less often: imports and figures keep many objects alive."""
    gc.set_threshold(100_000)


def help_of(name: str, module: str, about: str, width: int) -> str:
    """Write the help text of a command: what it does, and its flags in groups, the most important first.

    Args:
        name: The command.
        module: The module that defines its flags.
        about: What the command does.
        width: Width of the terminal, in columns.
    """
    known = [flag for flag in flags.FLAGS.get_key_flags_for_module(module) if not flag.help.startswith("Alias for")]
    groups: dict[str, list[flags.Flag]] = {title: [] for title in ("Start with these", *GROUPS.values(), OTHERS)}
    title = OTHERS
    for flag in known:
        title = GROUPS.get(flag.name, title)
        groups["Start with these" if flag.name in FIRST.get(name, ()) else title].append(flag)
    if not any(groups[title] for title in groups if title != OTHERS):
        groups = {"Flags": known}
    lines = [about.strip()]
    for title, members in groups.items():
        lines += ["", f"{title}:"] if members else []
        for flag in members:
            shown = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
            default = (
                f" (default:{HARD}{flag.default_as_str.strip(QUOTE)})" if flag.default not in (None, "", []) else ""
            )
            text = flags.text_wrap(f"{shown}: {flag.help}{default}", width, "      ", "  ")
            lines.append(text.replace(HARD, " "))
    return "\n".join(lines)


def parse(name: str, argv: Sequence[str]) -> list[str]:
    """Parse the flags of a command, and return the arguments that are not flags."""
    if {"--help", "-h", "-help"} & set(argv[1:]):
        width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
        print_line(help_of(name, argv[0], sys.modules["__main__"].__doc__ or "", width))
        sys.exit(0)
    for argument in argv:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # bytes that are no text
            sys.exit(f"{name}: {argument.encode(errors='backslashreplace').decode()!r}: must be text in UTF-8")
    try:
        with _output():
            try:
                return flags.FLAGS(argv)
            except SystemExit:  # of --help, which absl ends as it does a mistake
                sys.stdout.flush()
                raise SystemExit(0) from None
    except flags.UnrecognizedFlagError as error:
        message = f"{error}; --help lists the flags"
    except flags.Error as error:
        message = str(error).removeprefix("ERROR:: ")
        if "Non-boolean" in message:  # absl puts a tuple there
            message = f"{message.partition(': ')[0]}: must be true or false"
    except UnicodeDecodeError as error:
        files = ", ".join(argument for argument in argv if argument.startswith("--flagfile"))
        message = f"{files}: a flag file must be text, and this is not: {error}"
    sys.exit(f"{name}: {' '.join(message.split())}{_where(message, argv)}")


def call(name: str, main: Callable[[], None], argv: Sequence[str]) -> None:
    """Call a command after its flags were parsed."""
    logging.set_verbosity(logging.FATAL)  # Orbax notes every save and every error, which it raises too; others likewise
    try:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r} is not a flag; flags look like --recording=DIR")
        if not flags.FLAGS.recording:
            raise InputError.flag("recording", None, "must name a directory")
        main()
    except InputError as error:
        sys.exit(f"{name}: {error}{_where(str(error), sys.argv)}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def stop_on_signals(words: str) -> list[int]:
    """Note the first Ctrl-C or SIGTERM in the returned list. A second one ends the program at once.

    Args:
        words: What to print on the standard error at the first signal.
    """
    noted: list[int] = []

    def handle(how: Callable[[int, object], None] | signal.Handlers) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, how)

    def note(number: int, frame: object) -> None:
        noted.append(number)
        with contextlib.suppress(OSError):
            os.write(2, f"{words}\n".encode())  # and no print, which this may have interrupted
        handle(signal.SIG_DFL)

    handle(note)
    return noted


def _where(message: str, argv: Sequence[str]) -> str:
    """Name the flag file that holds the flag in an error message, if that flag is not on the command line."""
    found = re.match(r"(?:flag )?--(\w+)|Unknown command line flag '(\w+)'|'(.*)' is not a flag", message)
    if found is None:
        return ""
    name, unknown, word = found.groups()
    given = re.compile(rf"\s*{re.escape(word)}\s*$" if word else rf"\s*--?(no)?{name or unknown}\b")
    if any(given.match(argument) for argument in argv):
        return ""
    for argument in argv:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if any(map(given.match, Path(file := argument.partition("--flagfile=")[2]).read_text().splitlines())):
                return f" (in {file})"
    return ""


def define_config_flags(names: Collection[str] = tuple(FIELDS)) -> None:
    """Define flags for some fields of the configuration."""
    for field in (FIELDS[name] for name in names):
        name, default, text = flag_name(field.name), field.default, field.metadata["help"]
        if isinstance(default, tuple):
            flags.DEFINE_list(name, list(map(str, default)), text)
        elif isinstance(default, bool):
            flags.DEFINE_flag(flags.BooleanFlag(name, default, text))
            flags.FLAGS[name].parser = SwitchParser()
        elif field.name == "learning_rate":
            flags.DEFINE(RateParser(), name, default, text)
        elif isinstance(default, str) or field.name == "data_dir":
            flags.DEFINE_string(name, default, text)
        else:
            flags.DEFINE(NumberParser(float if isinstance(default, float) else int), name, default, text)


def config_from_flags(names: Collection[str] = tuple(FIELDS), **others: Any) -> StudyConfig:
    """Build a configuration from the flags of some fields, and from given values for others.

    Raises:
        InputError: If a value is malformed, out of range, or contradicts another value.
    """
    values = {name: flags.FLAGS[flag_name(name)].value for name in names}
    try:
        values["hidden_sizes"] = tuple(int(size) for size in values["hidden_sizes"])
    except ValueError:
        raise InputError.flag(
            "hidden_sizes", tuple(values["hidden_sizes"]), "must be whole numbers, comma separated, for example 32,16"
        ) from None
    values["layers"] = tuple(values["layers"])
    return StudyConfig(**values, **others)


class NumberParser(flags.ArgumentParser):
    """Parses a whole number or a decimal number."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def parse(self, argument: str | int | float) -> int | float:
        """Parse a flag's value."""
        try:
            return self.kind(argument)
        except ValueError:
            raise ValueError("must be a whole number" if self.kind is int else "must be a number") from None


class RateParser(flags.ArgumentParser):
    """Parses a number, and leaves the text of a schedule unchanged."""

    def parse(self, argument: str | float) -> str | float:
        """Parse the flag's value. `StudyConfig` and Optax check a schedule later."""
        try:
            return float(argument)
        except ValueError:
            if "(" in argument:
                return argument
            raise ValueError("must be a number, or a schedule with its arguments in parentheses") from None


class SwitchParser(flags.BooleanParser):
    """Parses true or false."""

    def parse(self, argument: str | int | bool) -> bool:
        """Parse a flag's value."""
        try:
            return super().parse(argument)
        except ValueError:
            raise ValueError("must be true or false") from None
