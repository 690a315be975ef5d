"""The one place that imports ArviZ: 0.23 and 1.x behind the same functions.

ArviZ 1.x is three packages, and some functions changed their sign on the way: ``psislw`` took log weights and takes the
negated log ratios.
"""

from typing import Any

import arviz
import numpy as np

ARVIZ_1 = int(arviz.__version__.partition(".")[0]) >= 1

if ARVIZ_1:
    from arviz_stats.base import array_stats


def pareto_shape(log_weights: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the shape k̂ of the generalized Pareto distribution that ArviZ fits to the largest weights of each row.

    Where a row has no tail that could be fitted the two versions differ, in what they return and in what they raise:
    :func:`pyro_vae.evaluation.diagnostics.pareto_k` treats those rows and is what to call.

    Args:
        log_weights: (B, K), natural logarithms; not changed.

    Returns:
        (B,), NaN or infinite where no fit was found.
    """
    with np.errstate(all="ignore"):  # the fit tries shapes that overflow and gives them no weight
        _, shape = array_stats.psislw(-log_weights) if ARVIZ_1 else arviz.psislw(log_weights)
    return np.asarray(shape, dtype=np.float64)
