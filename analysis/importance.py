"""Importance of each parameter of a sweep for its metric: permutation importance and rank correlation.

A random forest predicts the metric from the parameters. The importance of a parameter is the increase of the error, on
runs that the forest was not fitted to, when the values of that parameter are permuted among the runs (Breiman 2001,
"Random Forests", section 10; Fisher, Rudin & Dominici 2019, arXiv 1801.01489). Spearman's rank correlation gives the
direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

AT_LEAST = 6  # runs
RELIABLE_FROM = 20  # runs
FOLDS = 5
CUTS = 5  # number of random divisions of the runs into folds
TREES = 60
EXCHANGES = 10  # permutations of a parameter's values in each fold


def parameter_importance(table: pd.DataFrame, parameters: Sequence[str], metric: str) -> pd.DataFrame:
    """Return the importance of each parameter that varies.

    Args:
        table: one row per run.
        parameters: columns of the varied parameters; numbers, or texts for categories.
        metric: column of the predicted metric.

    Returns:
        One row per parameter, the most important first: ``parameter``; ``importance``, the increase of the squared
        error of the prediction as a share of the variance of the metric; ``low`` and ``high``, its range over several
        random divisions of the runs into folds; ``correlation`` (Spearman) and its ``p``, NaN for categories; ``n``,
        the number of runs; ``explained``, the share of the variance of the metric that the forest predicts in runs
        that it was not fitted to.

    Raises:
        ValueError: fewer than ``AT_LEAST`` runs, a metric with the same value in all runs, or no parameter that varies.
    """
    table = table[np.isfinite(table[metric].astype(float))]
    y_S = table[metric].to_numpy(float)
    if len(y_S) < AT_LEAST:
        raise ValueError(f"importance needs at least {AT_LEAST} runs that came to their end; there are {len(y_S)}")
    if np.ptp(y_S) == 0:
        raise ValueError(f"importance needs runs that differ; {metric} is {y_S[0]:g} in all {len(y_S)}")
    varied = [name for name in parameters if table[name].nunique() > 1]
    if not varied:
        raise ValueError("importance needs a parameter that varies")
    gains, explained = _gains(table[varied].reset_index(drop=True), y_S)
    rows = []
    for name in varied:
        numbers = pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name])
        rank = spearmanr(table[name], y_S) if numbers else (np.nan, np.nan)
        gain = gains[name]
        rows.append([name, gain.mean(), gain.min(), gain.max(), rank[0], rank[1], len(y_S), explained])
    columns = ["parameter", "importance", "low", "high", "correlation", "p", "n", "explained"]
    importances = pd.DataFrame(rows, columns=columns)
    return importances.sort_values("importance", ascending=False, ignore_index=True)


def _gains(x: pd.DataFrame, y_S: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Increase of the error by parameter and way to cut, and the variance explained; in shares of the variance."""
    rng = np.random.default_rng(0)
    # A category is several columns, which are exchanged together.
    numeric = pd.api.types.is_numeric_dtype
    blocks = [x[[name]] if numeric(x[name]) else pd.get_dummies(x[name].astype(str)) for name in x]
    inputs = np.concatenate([block.to_numpy(float) for block in blocks], axis=1)
    widths = np.cumsum([0, *(block.shape[1] for block in blocks)])
    columns = {str(name): slice(widths[k], widths[k + 1]) for k, name in enumerate(x)}
    errors, exchanged = np.zeros(CUTS), {name: np.zeros(CUTS) for name in columns}
    for cut in range(CUTS):
        for fit, held_out in KFold(min(FOLDS, len(y_S)), shuffle=True, random_state=cut).split(inputs):
            forest = RandomForestRegressor(TREES, random_state=cut).fit(inputs[fit], y_S[fit])
            errors[cut] += ((forest.predict(inputs[held_out]) - y_S[held_out]) ** 2).sum()
            for name, of_name in columns.items():
                changed = np.tile(inputs[held_out], (EXCHANGES, 1))
                donors = rng.integers(len(y_S), size=len(changed))
                changed[:, of_name] = inputs[donors][:, of_name]
                wrong = (forest.predict(changed) - np.tile(y_S[held_out], EXCHANGES)) ** 2
                exchanged[name][cut] += wrong.sum() / EXCHANGES
    total = ((y_S - y_S.mean()) ** 2).sum()
    return {name: (of - errors) / total for name, of in exchanged.items()}, float(1 - errors.mean() / total)
