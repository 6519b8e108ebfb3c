"""The text on the page about pairs that take turns, or do not."""

from collections.abc import Sequence

from train_dynamics.config import pluralise
from train_dynamics.recording.reader import Recording
from train_dynamics.report.sections import Picture, Section
from train_dynamics.study.contention import FEWEST_CHANGES, SIGNIFICANT, WINDOW
from train_dynamics.study.oscillation import NUM_CONTROLS, Oscillation, Verdict, time_quartiles, verdicts


def oscillation_section(recording: Recording, found: Oscillation, pictures: Sequence[Picture]) -> Section:
    """Write the section on the steps of the explanation, with a table of how many pairs each holds in."""
    title = "Do the groups in contention take turns?"
    followed = sum(course is not None for course in found.courses)
    if not found.pairs:
        return Section(title, "There is no pair in contention, so there is nothing to follow.")
    if not followed:
        words = f"None of {pluralise(len(found.pairs), 'pair')} was found with more than {FEWEST_CHANGES} records left."
        return Section(title, words)
    steps = [verdict for verdict in verdicts(found, len(recording.seeds)) if verdict.pairs]
    compared = max(verdict.compared for verdict in steps)
    words = (
        "The study explains why such groups oscillate, as binary stars do: the gradients of one are larger at first "
        "and dominate the batch; it gains, the other loses, and the other's gradients grow until they dominate, and so "
        f"on. Each step is measured by one number per pair, for {followed:,} of {pluralise(len(found.pairs), 'pair')}, "
        f"at up to {WINDOW} records after each was found. A group leads where the mean gradient of all examples points "
        "to its side along their axis, which is the difference of the directions of their mean gradients. "
        f"{pluralise(compared, 'pair')} could be compared, each with {NUM_CONTROLS} matched pairs, as in the test "
        "above. A step holds in a pair if it is true of it, and more so than of those, at a false discovery rate of "
        f"{SIGNIFICANT:.0%} for each step. oscillation.csv has every pair. {_times(found)}"
    )
    table = {
        "step": [verdict.sentence for verdict in steps],
        "measured as": [verdict.measured for verdict in steps],
        "median pair": [_three(verdict.median) for verdict in steps],
        "of matched pairs": [_three(verdict.matched) for verdict in steps],
        "difference from matched pairs (95 %)": [_difference(verdict) for verdict in steps],
        "true if above": [f"{verdict.bar:g}" for verdict in steps],
        "true in": [f"{verdict.true:,} of {verdict.pairs:,}" for verdict in steps],
        "holds in": [_holds(verdict) for verdict in steps],
    }
    return Section(
        title,
        words,
        pictures=pictures,
        table=table,
        table_title="The steps of the explanation, and what else was measured",
    )


def _times(found: Oscillation) -> str:
    """Describe the period and the lags."""
    times = time_quartiles(found)
    period, loss = times["period"], times["loss_lag"]
    if period["median"] is None:
        return ""
    memory, half_turn = times["memory"], times["half_turn"]
    words = f"In the median pair a lead is forgotten after {memory['median'] or 0:,.0f} records, "
    words += (
        f"is most opposed to itself after {half_turn['median']:,.0f}, with a correlation of "
        f"{times['at_half_turn']['median']:.2f}, and most like itself again after {period['median']:,.0f} "
        f"({period['lower_quartile']:,.0f} to {period['upper_quartile']:,.0f} in the middle half of the pairs: the "
        "wider, the less there is of a period)."
    )
    if loss["median"] is not None:
        words += (
            f" The difference of the losses follows the lead by {loss['median']:,.0f} records "
            f"({loss['lower_quartile']:,.0f} to {loss['upper_quartile']:,.0f}), with a correlation of "
            f"{times['loss_at_lag']['median']:.2f}."
        )
    return words


def _holds(verdict: Verdict) -> str:
    if verdict.share is None:
        return "not compared"
    return f"{verdict.holds:,} of {verdict.compared:,}: {verdict.share:.0%}"


def _difference(verdict: Verdict) -> str:
    if verdict.difference is None:
        return ""
    interval = "" if verdict.low is None else f" ({_three(verdict.low)} to {_three(verdict.high)})"
    return _three(verdict.difference) + interval


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
