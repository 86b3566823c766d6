"""Probabilities and quantiles of distributions, by SciPy.

SciPy is imported at their first use: most processes of an installation compute no statistics, and the import
takes 28 MB and a quarter of a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normal_probabilities(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of at most each of `values` under the standard normal distribution."""
    from scipy.special import ndtr

    return np.asarray(ndtr(values))


def normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def t_probability(freedom: float, value: float) -> float:
    """Return the probability of at most `value` under Student's distribution."""
    from scipy.special import stdtr

    return float(stdtr(freedom, value))


def t_quantile(freedom: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def f_quantile(numerator: float, denominator: float, probability: float) -> float:
    """Return the quantile of F with these degrees of freedom."""
    from scipy.special import fdtri

    return float(fdtri(numerator, denominator, probability))


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """Return the probability of more than `successes` successes."""
    from scipy.special import bdtrc

    return float(bdtrc(successes, trials, chance))
