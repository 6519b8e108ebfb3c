"""The loss at the end of training: what is left to learn. No paper claims it; every other score should beat it."""

from train_dynamics.dynamics.scores.score import Latest, StreamedScore

# Not `cumulative_loss`, which remembers how an example came to be learned.
LOSS = StreamedScore(
    name="loss",
    hard="high",
    unit="nats",
    formula="-ln p of the label at the end",
    source="the cross-entropy that training minimises",
    start=lambda study: Latest(study, lambda records: records.loss),
)
