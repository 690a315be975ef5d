"""Assertions that several tests share."""

import torch


def assert_mean(samples, truth, standard_errors=5.0):
    """Assert |mean − truth| ≤ five standard errors, the error taken from the samples along their first dimension.

    A sample without spread must equal the truth.
    """
    samples = samples.double()
    truth = torch.as_tensor(truth, dtype=torch.float64)
    mean = samples.mean(0)
    error = samples.std(0, correction=1) / len(samples) ** 0.5
    distance = (mean - truth).abs()
    limit = standard_errors * error + 1e-12 * truth.abs()
    assert (distance <= limit).all(), f"mean {mean}, truth {truth}: {distance / error} standard errors"


def assert_close(value, reference, tolerance=1e-10):
    """Assert equality relative to the largest entry of the reference."""
    size = reference.abs().max()
    error = (value - reference).abs().max() / (size if size > 0 else 1)
    assert value.shape == reference.shape
    assert error <= tolerance, f"relative error {error:.3g} above {tolerance:g}"
