r"""The figures of one estimator's gradient and their standard errors, from its draws and those of a reference.

g is a draw of the estimator, r of the reference, N and N_r their numbers, u the direction of E r. Both are noisy, and
near the posterior, where E r is small, the noise of r̄ is most of its length. Everything below counts it:

* **signal²**, ‖E g‖², is ‖ḡ‖² − V/N, without bias; it may come out below 0.
* **SNR** is the root of signal²/V. Its error is half the distance to the further end of the root of signal²/V ± two
  errors, so a signal below its noise reads 0 ± half the largest SNR that the draws allow, not 0 ± 0.
* **distance²**, ‖E g − E r‖², is unbiased likewise: 0 within five errors where no bias is found. **bias²** is that over
  the reference's signal², which adds its noise: it says how large a bias is, not whether there is one.
* **cosine**, E cos(g, u) = E[g/‖g‖] · E r / ‖E r‖, is bilinear in two independent means: their product is unbiased, and
  is divided by the root of the reference's signal² in place of ‖r̄‖, which is too long by its noise.
* **DSNR**, E[‖g∥‖ / ‖g⊥‖] along and across u, is taken along r̄, and the jackknife removes its bias of order 1/N_r.

The error of a figure of both samples has two independent parts, √(s_g² + s_r²): over the draws of the estimator, and by
a jackknife over twenty blocks of the reference's (a two-sample jackknife: Arvesen, Annals of Mathematical Statistics
40, 1969). Where a figure cannot be known, its place takes the reason, in one line.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.base.statistics import Estimate, LeftOut, Moments, estimate, jackknife

LEAST_SIGNAL = 3.0  # standard errors of the reference's signal², below which nothing is measured relative to it
LEAST_SHARE = 0.9  # of ‖r̄‖² that is signal, for a ratio along r̄: then the cosine of r̄ and E r is about 0.95
FEWEST_DIMENSIONS = 4  # in fewer, ‖g⊥‖ has at most two: 1/‖g⊥‖ has no finite variance
RANK = 1e-12  # eigenvalues, relative to the largest, that are rounding: single precision squared, with a margin
MORE = "Try more reference draws"


class GradientSample:
    """Draws of one estimator's gradient beside a reference: moments, and 22 numbers for each draw.

    Args:
        reference: of other, independent draws.
    """

    def __init__(self, reference: LeftOut) -> None:
        self.reference = reference
        self.moments = Moments()
        self._products: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, g: Tensor) -> None:
        """Add a draw, (D,)."""
        value = g.detach().double()
        self.moments.add(value)
        self._products.append(self.reference.mean @ value)
        self._squares.append(value.square().sum())

    @property
    def products(self) -> Tensor:
        """(N, b + 1): each draw times the reference's mean of all draws and without each block, g · r̄."""
        return torch.stack(self._products)

    @property
    def squares(self) -> Tensor:
        """(N,): ‖g‖²."""
        return torch.stack(self._squares)


@dataclass(frozen=True)
class GradientFigures:
    """The figures, or the reason why one is not known."""

    norm: float
    variance: Estimate
    snr: Estimate
    distance_squared: Estimate
    bias_squared: Estimate | str
    dsnr: Estimate | str
    cosine: Estimate | str


def gradient_figures(sample: GradientSample) -> GradientFigures:
    """Return the figures of a sample of at least twenty draws.

    Example:
        >>> import torch
        >>> from pyro_vae.base.statistics import Moments
        >>> noise = torch.randn(2, 400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> reference = Moments()
        >>> for r in 1 + noise[0]:
        ...     reference.add(r)
        >>> sample = GradientSample(reference.left_out())
        >>> for g in 1 + noise[1]:
        ...     sample.add(g)
        >>> figures = gradient_figures(sample)  # the SNR is 1
        >>> print(figures.snr, figures.cosine, sep=", ")
        0.964 ± 0.023, 0.701 ± 0.010
    """
    own = sample.moments.left_out()
    return GradientFigures(
        math.sqrt(max(own.signal[0].item(), 0.0)),
        jackknifed(own.variance),
        _snr(own),
        _both(*_distances(own, sample.reference)),
        _bias_squared(own, sample.reference),
        _dsnr(sample, own),
        _cosine(sample),
    )


def jackknifed(values: Tensor) -> Estimate:
    """Return a figure with its jackknife error: of all blocks first, then without each."""
    return Estimate(*jackknife(lambda b: values[0 if b is None else b + 1].item(), len(values) - 1))


def root(square: Estimate) -> Estimate:
    """Return the root of an estimate that may be below 0; two of its errors reach as far as two of the square's.

    Far above 0 the error is that of the delta method, s / (2 √q).

    Example:
        >>> print(root(Estimate(4.0, 0.04)), root(Estimate(-0.01, 0.08)), sep=", ")
        2.000 ± 0.010, 0.00 ± 0.20
    """
    q, two = max(square.value, 0.0), 2 * square.standard_error
    value = math.sqrt(q)
    furthest = max(math.sqrt(q + two) - value, value - math.sqrt(max(q - two, 0.0)))
    return Estimate(value, furthest / 2)


def _snr(own: LeftOut) -> Estimate:
    square = jackknifed(own.signal / own.variance)
    flat = math.sqrt(2 * _variance_of_no_signal(own)) / own.variance[0].item() if own.variance[0] else 0.0
    return root(Estimate(square.value, math.hypot(square.standard_error, flat)))


def _variance_of_no_signal(own: LeftOut) -> float:
    """Return 2 tr(C²), the variance of signal² where E g = 0, C the covariance of ḡ; unbiased for normal noise.

    The jackknife is built from the slope of ‖ḡ‖² and misses it in samples where ḡ happens to be near 0.
    """
    away = own.mean[1:] - own.mean[0]
    b = len(away)
    gram = (b - 1) / b * (away @ away.T)
    squares = gram.square().sum() - gram.trace() ** 2 / (b - 1)  # tr C² without what the noise of C adds
    return max(0.0, 2 * (b - 1) ** 2 / ((b - 2) * (b + 1)) * squares.item())


def _distances(own: LeftOut, reference: LeftOut) -> tuple[Tensor, Tensor]:
    """Return ‖E g − E r‖² without each block of the estimator's draws, and without each of the reference's."""
    noise, other = own.variance / own.count, reference.variance / reference.count
    mine = (own.mean - reference.mean[0]).square().sum(1) - noise - other[0]
    theirs = (reference.mean - own.mean[0]).square().sum(1) - noise[0] - other
    return mine, theirs


def _bias_squared(own: LeftOut, reference: LeftOut) -> Estimate | str:
    if unknown := _unknown_signal(reference):
        return unknown
    mine, theirs = _distances(own, reference)
    return _both(mine / reference.signal[0], theirs / reference.signal)


def _cosine(sample: GradientSample) -> Estimate | str:
    if unknown := _unknown_signal(sample.reference) or _no_direction(sample):
        return unknown
    lengths = sample.reference.signal.clamp(min=0).sqrt()
    cosines = sample.products / sample.squares.sqrt()[:, None] / lengths
    found = _of_draws(cosines)
    return Estimate(min(1.0, max(-1.0, found.value)), found.standard_error, found.count)


def _dsnr(sample: GradientSample, own: LeftOut) -> Estimate | str:
    if unknown := _unknown_direction(sample.reference) or _no_direction(sample) or _too_few_dimensions(own):
        return unknown
    along = sample.products.square() / sample.reference.mean.square().sum(1)
    ratios = (along / (sample.squares[:, None] - along)).sqrt()
    found, blocks = _of_draws(ratios), ratios.shape[1] - 1
    value = blocks * found.value - (blocks - 1) * ratios[:, 1:].mean().item()  # without the bias of order 1/N_r
    return Estimate(value, found.standard_error, found.count)


def _of_draws(values: Tensor) -> Estimate:
    """Return the mean over draws, (N, b + 1), with the errors of the draws and of the reference's blocks."""
    own, reference = estimate(values[:, 0]), jackknifed(values.mean(0))
    return Estimate(own.value, math.hypot(own.standard_error, reference.standard_error), own.count)


def _both(own: Tensor, reference: Tensor) -> Estimate:
    """Return a figure of two samples, from its values without each block of one and of the other."""
    mine, other = jackknifed(own), jackknifed(reference)
    return Estimate(mine.value, math.hypot(mine.standard_error, other.standard_error))


def _unknown_signal(reference: LeftOut) -> str:
    signal = jackknifed(reference.signal)
    if signal.value > 0 and signal.value >= LEAST_SIGNAL * signal.standard_error:
        return ""
    return f"Expected a reference whose signal² is at least {LEAST_SIGNAL:g} standard errors; got {signal}. {MORE}"


def _unknown_direction(reference: LeftOut) -> str:
    share = (reference.signal[0] / reference.mean[0].square().sum()).item()
    few = f"Expected a reference whose mean is signal to at least {LEAST_SHARE:g}; got {share:.2f}. {MORE}"
    return _unknown_signal(reference) or ("" if share >= LEAST_SHARE else few)


def _no_direction(sample: GradientSample) -> str:
    zero = "Expected gradients that have a direction; got one of zero. Try another batch"
    return zero if (sample.squares == 0).any() else ""


def _too_few_dimensions(own: LeftOut) -> str:
    """Return why a ratio to ‖g⊥‖ has no error: the draws span too few dimensions."""
    sizes = torch.linalg.eigvalsh(own.mean[1:] @ own.mean[1:].T)
    spanned = int((sizes > RANK * sizes[-1]).sum())
    few = f"Expected gradients that span at least {FEWEST_DIMENSIONS} dimensions; got {spanned}"
    return "" if spanned >= FEWEST_DIMENSIONS else f"{few}, where 1/‖g⊥‖ has no finite variance. Try the cosine"
