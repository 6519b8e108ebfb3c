"""A data set of token ids, made by a seeded function: are these round and square brackets balanced?"""

import numpy as np

VOCABULARY = ("(", ")", "[", "]")
LENGTH = 12
PARTNER = {")": "(", "]": "["}


def brackets(num_examples: int = 1200, seed: int = 0) -> dict:
    """Make distinct texts of twelve brackets: half balanced, a quarter with one bracket changed, a quarter noise.

    Returns:
        What `--dataset` takes: inputs [n, 12], labels [n], and ids that tell of which kind an example is.
    """
    rng = np.random.default_rng(seed)
    kinds = {"balanced": num_examples // 2, "changed": num_examples // 4}
    kinds["noise"] = num_examples - sum(kinds.values())
    texts, ids = [], []
    for kind, count in kinds.items():
        found = set()
        while len(found) < count:
            text = _noise(rng) if kind == "noise" else _balanced(rng)
            if kind == "changed":
                k = rng.integers(LENGTH)
                text = text[:k] + rng.choice([word for word in VOCABULARY if word != text[k]]) + text[k + 1 :]
            if is_balanced(text) == (kind == "balanced") and text not in texts:
                found.add(text)
        texts += sorted(found)
        ids += [f"{kind}-{k}" for k in range(count)]
    return {
        "inputs": np.array([[VOCABULARY.index(word) for word in text] for text in texts], np.int32),
        "labels": ["balanced" if is_balanced(text) else "unbalanced" for text in texts],
        "ids": ids,
        "vocabulary": VOCABULARY,
    }


def is_balanced(text: str) -> bool:
    """Tell whether every bracket is closed by one of its own kind.

    Example:
        >>> is_balanced("([])"), is_balanced("([)]")
        (True, False)
    """
    still_open: list[str] = []
    for word in text:
        if word not in PARTNER:
            still_open.append(word)
        elif not still_open or still_open.pop() != PARTNER[word]:
            return False
    return not still_open


def _noise(rng: np.random.Generator) -> str:
    return "".join(rng.choice(VOCABULARY, LENGTH))


def _balanced(rng: np.random.Generator) -> str:
    text, still_open = "", []
    while len(text) < LENGTH:
        left = LENGTH - len(text)
        if still_open and (len(still_open) == left or rng.random() < 0.5):
            text += still_open.pop()
        else:
            kind = rng.integers(2)
            text += "(["[kind]
            still_open.append(")]"[kind])
    return text
