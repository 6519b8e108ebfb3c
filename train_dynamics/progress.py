"""The progress bar of all commands: what is being done, how far it is, and how long it will still take."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

LEAST_BAR = 6  # columns, of which two are its edges
FORMS = (  # the first that fits the terminal is shown
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}, {remaining} left, {rate_noinv_fmt}{postfix}",
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}, {remaining} left{postfix}",
    "{desc}: {percentage:3.0f}%, {n_fmt}/{total_fmt}{unit}, {remaining} left{postfix}",
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}, {remaining} left",
    "{desc}: {percentage:3.0f}%, {remaining} left",
)


class Progress(tqdm):
    """A bar on the standard error, shown only in a terminal; it leaves out what a narrow terminal has no room for.

    Args:
        what: What is being done, in words, for example `Recording`.
        total: How many there are.
        unit: What is counted, in the plural.
        forms: What to show, as `bar_format` of `tqdm`; the first that fits the terminal is taken.
        options: More arguments for `tqdm`.
    """

    def __init__(self, what: str, total: int, unit: str, forms: Sequence[str] = FORMS, **options: Any) -> None:
        self._forms = forms
        super().__init__(desc=what, total=total, unit=f" {unit}", disable=None, dynamic_ncols=True, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """The values to show, with the form that fits the terminal."""
        values = super().format_dict
        if "bar_format" not in values:  # it is shown nowhere
            return values
        values["prefix"] = values["prefix"].removesuffix(": ")  # which `set_description` adds
        columns = values["ncols"]
        for form in self._forms:
            values["bar_format"] = form
            text = self.format_meter(**{**values, "bar_format": form.replace("|{bar}|", ""), "ncols": None})
            if not columns or len(text) + LEAST_BAR * ("{bar}" in form) <= columns:
                break
        return values
