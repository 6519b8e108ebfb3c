"""The length of the error vector early in training (EL2N).

Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training" (2021): the
expectation over networks of |p - y| after a few epochs, with p the class probabilities and y the one-hot label; they
take epochs 10 and 20 of 200. It is *not* only the probability missing at the label: it also depends on how the rest is
spread. Checked against the code that the authors published.
"""

from train_dynamics.dynamics.scores.score import Latest, StreamedScore

SOURCE = 'Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet" (2021)'

EL2N = StreamedScore(
    name="el2n",
    hard="high",
    unit="probability",
    formula="L2 norm of p - y, early in training",
    source=SOURCE,
    start=lambda study: Latest(study, lambda records: records.error_norm, until=study.early),
)
