"""All scores, families together: one more takes a file of its own and a line here."""

from train_dynamics.dynamics.scores import (
    cartography,
    cumulative,
    curvature,
    el2n,
    ensemble,
    forgetting,
    grand,
    learned,
    loss,
    margin,
    tracin,
    vog,
)
from train_dynamics.dynamics.scores.score import Score

SCORES: tuple[Score, ...] = (
    ensemble.AGR,
    ensemble.CONFIDENCE,
    loss.LOSS,
    cumulative.CUMULATIVE_LOSS,
    cumulative.CUMULATIVE_CONFIDENCE,
    cumulative.CUMULATIVE_ACCURACY,
    margin.AREA_UNDER_MARGIN,
    cartography.CONFIDENCE,
    cartography.CORRECTNESS,
    cartography.VARIABILITY,
    forgetting.FIRST_CORRECT,
    forgetting.FIRST_LEARNED_IN_BATCH,
    learned.LEARNED_FOR_GOOD,
    learned.ITERATION_LEARNED,
    forgetting.FORGETTING_EVERY_RECORD,
    forgetting.FORGETTING_IN_BATCH,
    el2n.EL2N,
    grand.GRAND_RECORDED,
    grand.GRAND,
    tracin.TRACIN_RECORDED,
    tracin.TRACIN,
    vog.VOG,
    curvature.CURVATURE,
)
