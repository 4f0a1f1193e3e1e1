"""Plain models of labelled sequences: logistic and ridge regression on k-mers or on positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longseq.genomics.data.tokenizer import A, is_base, reverse_complement

ORDERS = (1, 2, 3, 4, 5, 6)
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_INNER = 4  # folds in which word length and strength are chosen
_ALPHAS = tuple(10.0**power for power in range(-2, 5))


def kmer_shares(sequences: Sequence[np.ndarray], k: int, both_strands: bool) -> np.ndarray:
    """Returns the share of each word of k bases in each sequence, float32 (n, 4^k).

    Args:
        sequences: token ids, uint8 (n,) each; words with anything but A, C, G and T do not count.
        k: length of the words.
        both_strands: count the words of the reverse complement too.
    """
    found = np.zeros((len(sequences), 4**k), np.float32)
    for row, ids in zip(found, sequences):
        for strand in (ids, reverse_complement(ids)) if both_strands else (ids,):
            if len(strand) < k:
                continue
            known = np.lib.stride_tricks.sliding_window_view(is_base(strand), k).all(1)
            digits = np.where(is_base(strand), strand.astype(np.int64) - A, 0)
            code = np.lib.stride_tricks.sliding_window_view(digits, k) @ 4 ** np.arange(k)[::-1]
            row += np.bincount(code[known], minlength=4**k)
        row /= max(row.sum(), 1)
    return found


def positions(sequences: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns which base stands where, float32 (n, 4 L); None if the lengths differ.

    Args:
        sequences: token ids, uint8 (n,) each.
    """
    if len({len(ids) for ids in sequences}) != 1:
        return None
    ids = np.stack(sequences)[..., None]
    return (ids == A + np.arange(4)).reshape(len(ids), -1).astype(np.float32)


def fit_predict(
    features: Sequence[np.ndarray],
    target: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    groups: np.ndarray,
    regression: bool,
    seed: int = 0,
) -> tuple[np.ndarray, str]:
    """Fits a linear model on the training rows and predicts the test rows.

    Which features, and how strong the regularisation is, is chosen by an inner cross-validation of
    the training rows alone.

    Args:
        features: candidates, (n, F) each.
        target: classes (int64) or numbers (n,).
        train: rows.
        test: rows.
        groups: see ``Labelled``; a group is never on both sides of an inner fold.
        regression: ridge regression, in place of logistic regression.
        seed: of the inner folds.

    Returns:
        Probabilities (test, classes) or numbers (test, 1), and what was chosen.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(target) if not regression else np.zeros(1)
    own = [np.unique(groups[train][target[train] == one]) for one in classes]
    each = [groups[train]] if regression else own  # a fold without a class could not be scored
    inner = max(2, min(_INNER, *(len(np.unique(one)) for one in each)))
    maker = GroupKFold if regression else StratifiedGroupKFold
    folds = maker(inner, shuffle=True, random_state=seed)
    best: tuple[float, Any, int] | None = None
    for number, columns in enumerate(features):
        for strength in _ALPHAS if regression else STRENGTHS:
            last = (
                Ridge(alpha=strength)
                if regression
                else LogisticRegression(C=strength, max_iter=1000)
            )
            model = make_pipeline(StandardScaler(), last)
            scoring = "r2" if regression else "neg_log_loss"
            rows, values, own = columns[train], target[train], groups[train]
            options = {"groups": own, "cv": folds, "scoring": scoring, "error_score": np.nan}
            score = float(np.nanmean(cross_val_score(model, rows, values, **options)))
            if best is None or score > best[0]:
                best = score, model, number
    assert best is not None
    model = best[1].fit(features[best[2]][train], target[train])
    rows = features[best[2]][test]
    if regression:
        return model.predict(rows)[:, None], str(best[2])
    found = np.zeros((len(test), len(classes)))
    found[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(rows)
    return found, str(best[2])
