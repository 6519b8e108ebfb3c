"""The loss at the end of training. It is not from a paper; it is the baseline that every other score should beat."""

from train_dynamics.dynamics.scores.score import Latest, StreamedScore

# Not `cumulative_loss`, which remembers how an example came to be learned.
LOSS = StreamedScore(
    name="loss",
    hard="high",
    unit="nats",
    formula="loss at the end, -ln p of the label",
    source="the cross-entropy that training minimises",
    start=lambda study: Latest(study, lambda records: records.loss),
)
