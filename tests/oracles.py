"""The slow, obviously right versions: loops in float64, one example at a time."""

import itertools
import math

import numpy as np


def forward(parameters: dict, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs of every layer and the logits, of one image."""
    inputs, x = [], image.astype(np.float64).ravel()
    for k, name in enumerate(sorted(parameters)):
        if k:
            x = np.maximum(x, 0)
        inputs.append(x)
        x = x @ parameters[name]["kernel"].astype(np.float64) + parameters[name]["bias"].astype(np.float64)
    return inputs, x


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def whole_gradient(parameters: dict, image: np.ndarray, label: int) -> dict[str, dict[str, np.ndarray]]:
    """Gradient of one example's cross-entropy with respect to every kernel and bias, by the chain rule."""
    names = sorted(parameters)
    inputs, logits = forward(parameters, image)
    delta = softmax(logits)
    delta[label] -= 1
    gradients = {}
    for k in reversed(range(len(names))):
        gradients[names[k]] = {"kernel": np.outer(inputs[k], delta), "bias": delta}
        if k:
            delta = (parameters[names[k]]["kernel"].astype(np.float64) @ delta) * (inputs[k] > 0)
    return gradients


def backward(parameters: dict, image: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Gradient of one example's cross-entropy with respect to every kernel."""
    return {name: layer["kernel"] for name, layer in whole_gradient(parameters, image, label).items()}


def agreement(probabilities: np.ndarray) -> list[float]:
    """Mean over pairs of seeds of the Jensen-Shannon divergence, from its definition by Kullback-Leibler."""

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True) if a > 0)

    seeds, examples, _ = probabilities.shape
    result = []
    for n in range(examples):
        found = []
        for i in range(seeds):
            for j in range(i):
                p, q = probabilities[i, n].astype(np.float64), probabilities[j, n].astype(np.float64)
                found.append(kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2)
        result.append(sum(found) / len(found))
    return result


def alignment(gradients: np.ndarray) -> tuple[list[float], list[float]]:
    """Norm and cosine to the mean, of [n, i, o] gradients, one example at a time in float64."""
    flat = [gradient.astype(np.float64).ravel() for gradient in gradients]
    mean = sum(flat) / len(flat)
    norms, cosines = [], []
    for gradient in flat:
        norms.append(math.sqrt(sum(x * x for x in gradient)))
        lengths = norms[-1] * math.sqrt(sum(x * x for x in mean))
        cosines.append(float(gradient @ mean) / lengths if lengths else 0.0)
    return norms, cosines


def forgetting(correct: np.ndarray) -> tuple[int, int, int]:
    """First correct, last mistake and forgetting events of one example's [t] history, step by step."""
    first, last, forgotten = len(correct), -1, 0
    for t, now in enumerate(correct):
        if now and first == len(correct):
            first = t
        if not now:
            last = t
        if t and correct[t - 1] and not now:
            forgotten += 1
    return first, last, forgotten


def first_correct_share(correct: np.ndarray, t: int) -> float:
    """Share of the columns of [t, n] with a correct entry up to and including t."""
    return sum(any(history[: t + 1]) for history in correct.T) / correct.shape[1]


def last_mistake_share(correct: np.ndarray, t: int) -> float:
    """Share of the columns of [t, n] with no wrong entry from t on."""
    return sum(all(history[t:]) for history in correct.T) / correct.shape[1]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine between two gradients, by the definition; 0 where either is zero."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b) / lengths if lengths else 0.0


def star_cover(near: np.ndarray) -> list[set[int]]:
    """Stars: again and again, the example with the most uncovered neighbours, and those; the first of equal ones."""
    left = {n for n in range(len(near)) if near[n, n]}
    stars = []
    while left:
        around = {n: {m for m in left if near[n, m]} for n in sorted(left)}
        centre = max(around, key=lambda n: (len(around[n]), -n))
        stars.append(around[centre])
        left -= around[centre]
    return stars


def fewest_cliques(near: np.ndarray) -> int:
    """Size of the smallest clique cover, by trying every way to put each example into a clique."""

    def place(n: int, cliques: list[list[int]]) -> int:
        if n == len(near):
            return len(cliques)
        best = place(n + 1, [*cliques, [n]])
        for k, clique in enumerate(cliques):
            if all(near[n, m] for m in clique):
                best = min(best, place(n + 1, [*cliques[:k], [*clique, n], *cliques[k + 1 :]]))
        return best

    return place(0, [])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks; the rank of a value is how many are below it, equal ones counting half."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([sum((other < value) + (other == value) / 2 for other in values) for value in values])

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def auc(difficulty: np.ndarray, noisy: np.ndarray) -> float:
    """Share of the pairs of a wrong and a right label in which the wrong one is higher, equal ones counting half."""
    pairs = [(wrong, right) for wrong in difficulty[noisy] for right in difficulty[~noisy]]
    return sum((wrong > right) + (wrong == right) / 2 for wrong, right in pairs) / len(pairs)


def precision(difficulty: np.ndarray, noisy: np.ndarray) -> float:
    """Mean share of wrong labels among the hardest over every order that equal values can be put into."""
    count, found = int(noisy.sum()), []
    for order in itertools.permutations(range(len(noisy))):
        if all(difficulty[a] >= difficulty[b] for a, b in itertools.pairwise(order)):
            found.append(noisy[list(order[:count])].mean())
    return float(np.mean(found))


def whole_gradient_norm(parameters: dict, image: np.ndarray, label: int, step: float = 1e-6) -> float:
    """Norm of the loss gradient with respect to every weight and bias, each moved a little on its own."""
    squares = 0.0
    for layer in parameters.values():
        for name, values in layer.items():
            for place in np.ndindex(values.shape):
                losses = []
                for sign in (1, -1):
                    moved = values.astype(np.float64)
                    moved[place] += sign * step
                    layer[name] = moved
                    losses.append(-math.log(softmax(forward(parameters, image)[1])[label]))
                layer[name] = values
                squares += ((losses[0] - losses[1]) / (2 * step)) ** 2
    return math.sqrt(squares)


def logit_gradient(parameters: dict, image: np.ndarray, label: int) -> np.ndarray:
    """Gradient of the label's logit with respect to each pixel, a product of the layers' Jacobians."""
    names, (inputs, _) = sorted(parameters), forward(parameters, image)
    jacobian = np.eye(inputs[0].size)
    for k, name in enumerate(names):
        if k:
            jacobian = jacobian @ np.diag((inputs[k] > 0).astype(float))
        jacobian = jacobian @ parameters[name]["kernel"].astype(np.float64)
    return jacobian[:, label]


def vog(checkpoints: list[dict], images: np.ndarray, labels: np.ndarray) -> list[float]:
    """Standard deviation over checkpoints of each pixel's gradient, averaged over pixels, normalised by class."""
    raw = []
    for image, label in zip(images, labels, strict=True):
        gradients = [logit_gradient(parameters, image, label) for parameters in checkpoints]
        mean = sum(gradients) / len(gradients)
        raw.append(np.mean(np.sqrt(sum((g - mean) ** 2 for g in gradients) / len(gradients))))
    result = []
    for value, label in zip(raw, labels, strict=True):
        of_class = [other for other, its in zip(raw, labels, strict=True) if its == label]
        spread = np.std(of_class)
        result.append(float((value - np.mean(of_class)) / spread) if spread else 0.0)
    return result


def input_curvature(parameters: dict, image: np.ndarray, label: int, step: float = 1e-4) -> float:
    """Sum of the squares of the loss's Hessian with respect to the pixels, each column from a gradient difference."""

    def gradient(x: np.ndarray) -> np.ndarray:
        p = softmax(forward(parameters, x)[1])
        return sum((p[c] - (c == label)) * logit_gradient(parameters, x, c) for c in range(len(p)))  # by the chain rule

    flat, total = image.astype(np.float64).ravel(), 0.0
    for pixel in range(flat.size):
        nudge = np.zeros(flat.size)
        nudge[pixel] = step
        total += np.sum(((gradient(flat + nudge) - gradient(flat - nudge)) / (2 * step)) ** 2)
    return float(total)


def toneva(correct: np.ndarray, presentations: list[int]) -> tuple[int, int]:
    """Forgetting events and first right presentation, of one example presented in these records; both all if never."""
    events, first, before = 0, None, False
    for k, t in enumerate(presentations):
        if before and not correct[t]:
            events += 1
        if correct[t] and first is None:
            first = k
        before = bool(correct[t])
    return (len(presentations), len(presentations)) if first is None else (events, first)


def settled(history: np.ndarray) -> int:
    """First position from which on a history is what it is at its end."""
    position = len(history) - 1
    while position and history[position - 1] == history[-1]:
        position -= 1
    return position


def _pairs(gradients: np.ndarray) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    flat = [gradient.astype(np.float64).ravel() for gradient in gradients]
    return flat, [(a, b) for a in range(len(flat)) for b in range(len(flat)) if a != b]


def m_coherence(gradients: np.ndarray) -> float:
    """n times the mean product of two gradients, drawn with replacement, over the mean square of one."""
    flat, _ = _pairs(gradients)
    products = [float(a @ b) for a in flat for b in flat]
    squares = [float(a @ a) for a in flat]
    return len(flat) * (sum(products) / len(products)) / (sum(squares) / len(squares))


def noise_scale(gradients: np.ndarray) -> float:
    """Trace of the sample covariance, entry by entry, over the mean product of two distinct gradients."""
    flat, pairs = _pairs(gradients)
    trace = sum(np.var([gradient[k] for gradient in flat], ddof=1) for k in range(len(flat[0])))
    return float(trace / (sum(float(flat[a] @ flat[b]) for a, b in pairs) / len(pairs)))


def confusion(gradients: np.ndarray) -> tuple[float, float]:
    """Minus the smallest product, if that is negative, and the smallest cosine, over every pair."""
    flat, pairs = _pairs(gradients)
    return max(0.0, -min(float(flat[a] @ flat[b]) for a, b in pairs)), min(cosine(flat[a], flat[b]) for a, b in pairs)


def stiffness(gradients: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean cosine over every pair of distinct examples, by their classes."""
    flat, pairs = _pairs(gradients)
    found: dict[tuple[int, int], list[float]] = {}
    for a, b in pairs:
        found.setdefault((labels[a], labels[b]), []).append(cosine(flat[a], flat[b]))
    return np.array(
        [[np.mean(found[c, d]) if (c, d) in found else np.nan for d in range(num_classes)] for c in range(num_classes)]
    )


def deepfool(parameters: dict, image: np.ndarray, overshoot: float = 0.02) -> float:
    """Length of the way to another class, a step at a time to the nearest boundary of the network as it is there."""
    start = image.astype(np.float64).ravel()
    label, x = int(forward(parameters, start)[1].argmax()), start.copy()
    for _ in range(50):
        logits = forward(parameters, x)[1]
        if logits.argmax() != label:
            break
        slope = logit_gradient(parameters, x, label)
        steps = []
        for other in range(len(logits)):
            toward = logit_gradient(parameters, x, other) - slope
            if toward.any():
                steps.append((logits[label] - logits[other]) / float(toward @ toward) * toward)
        x += (1 + overshoot) * min(steps, key=np.linalg.norm, default=0 * x)
    else:
        return math.inf
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        still = forward(parameters, start + middle * (x - start))[1].argmax() == label
        low, high = (middle, high) if still else (low, middle)
    return high * float(np.linalg.norm(x - start))


def scores_of(probabilities: np.ndarray, label: int, presentations: list[int], early: int) -> dict[str, float]:
    """All scores of one example and seed that its probabilities [t, c] decide, from their definitions."""
    p = probabilities[:, label]
    prediction = probabilities.argmax(axis=1)
    right = prediction == label
    others = np.delete(probabilities, label, axis=1).max(axis=1)
    epochs = [4, 8, 12, 16]
    end = len(p)
    wrong = np.flatnonzero(~right)
    first, _, forgotten = forgetting(right)
    in_batch = toneva(right, presentations)
    return {
        "confidence": probabilities[-1].max(),
        "loss": -np.log(p[-1]),
        "cumulative_loss": np.mean(-np.log(p)),
        "cumulative_confidence": p.mean(),
        "cumulative_accuracy": right.mean(),
        "area_under_margin": np.mean(np.log(p) - np.log(others)),
        "cartography_confidence": p[epochs].mean(),
        "cartography_correctness": right[epochs].mean(),
        "cartography_variability": p[epochs].std(),
        "first_correct": first,
        "first_learned_in_batch": in_batch[1],
        "learned_for_good": wrong[-1] + 1 if len(wrong) else 0,
        "iteration_learned": settled(prediction),
        "forgetting_every_record": forgotten if right.any() else end,
        "forgetting_in_batch": in_batch[0],
        "el2n": np.linalg.norm(probabilities[early] - np.eye(10)[label]),
    }


def whole_curvature(parameters: dict, image: np.ndarray) -> float:
    """Sum of the squares of the loss's Hessian with respect to the pixels, written out, without kinks."""
    p = softmax(forward(parameters, image)[1])
    jacobian = np.stack([logit_gradient(parameters, image, c) for c in range(len(p))])
    hessian = jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    return float(np.sum(hessian**2))
