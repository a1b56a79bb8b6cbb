"""The papers' equations in NumPy float64, one weight after another, and brute force."""

import itertools

import numpy as np


def layer(rows=5, inputs=8, samples=40, seed=0):
    """``weight [rows, inputs]``, ``x [samples, inputs]`` with correlated inputs and a mean."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(inputs, inputs))
    x = generator.normal(size=(samples, inputs)) @ mixing + generator.normal(size=inputs)
    return generator.normal(size=(rows, inputs)), x


def damped(moment, damping):
    return moment + damping * np.diag(moment).mean() * np.eye(len(moment))


def best_row(weight, moment, keep):
    """One output's optimum on the inputs it keeps, towards its own weights: normal equations."""
    found = np.zeros_like(weight)
    k = np.flatnonzero(keep)
    if len(k):
        found[k] = np.linalg.solve(moment[np.ix_(k, k)], moment[k] @ weight)
    return found


def cost(weight, other, moment):
    difference = weight - other
    return float(np.einsum("ri,ij,rj->", difference, moment, difference))


def first_to_go(scores):
    """Indices from the lowest score to the highest; of equal ones the last index first."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], -i))


def sparsegpt(weight, moment, damping, *, keep=None, sparsity=None, n_m=None, selection=4):
    """Frantar & Alistarh, 2023, eqs. 3-4: after each column the inverse of the remaining block, afresh."""
    weight, (rows, inputs) = weight.copy(), weight.shape
    full = damped(moment, damping)
    mask = np.ones_like(weight, dtype=bool) if keep is None else keep.copy()
    for j in range(inputs):
        inverses = [np.linalg.inv(full[i:, i:]) for i in range(inputs)]
        diagonal = np.array([inverses[i][0, 0] for i in range(inputs)])
        scores = weight**2 / diagonal
        if n_m is not None and j % n_m[1] == 0:
            n, m = n_m
            for r in range(rows):
                for i in first_to_go(scores[r, j : j + m])[: m - n]:
                    mask[r, j + i] = False
        if sparsity is not None and j % selection == 0:
            end = min(j + selection, inputs)
            number = round(sparsity * rows * end) - round(sparsity * rows * j)
            for at in first_to_go(scores[:, j:end].ravel())[:number]:
                r, i = divmod(at, end - j)
                mask[r, j + i] = False
        for r in range(rows):
            if not mask[r, j]:
                weight[r, j:] -= weight[r, j] / diagonal[j] * inverses[j][0]
                weight[r, j] = 0
    return np.where(mask, weight, 0), mask


def greedy_row(weight, moment, sets, steps, allowed=lambda gone, candidate: True):
    """Remove sets one by one, re-solving the least squares for every candidate."""
    gone, found = [], []
    for _ in range(steps):
        best = None
        for candidate in range(len(sets)):
            if candidate in gone or not allowed(gone, candidate):
                continue
            keep = np.ones(weight.shape[1], bool)
            keep[list(itertools.chain(*(sets[g] for g in [*gone, candidate])))] = False
            solved = np.array([best_row(row, moment, keep) for row in weight])
            error = cost(weight, solved, moment)
            if best is None or error < best[0] - 1e-12:
                best = (error, candidate, solved)
        gone.append(best[1])
        found.append(best)
    return gone, [item[0] for item in found], found[-1][2] if found else weight
