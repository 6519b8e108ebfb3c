"""Flag values that say in words what was expected, where absl would quote Python."""

from absl import flags


class NumberParser(flags.ArgumentParser):
    """Parses a whole number or any number."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def parse(self, argument: str | int | float) -> int | float:
        """Parse a flag's value."""
        try:
            return self.kind(argument)
        except ValueError:
            raise ValueError("must be a whole number" if self.kind is int else "must be a number") from None


class SwitchParser(flags.BooleanParser):
    """Parses true or false."""

    def parse(self, argument: str | int | bool) -> bool:
        """Parse a flag's value."""
        try:
            return super().parse(argument)
        except ValueError:
            raise ValueError("must be true or false") from None
