"""A row of the table: a program with its arguments, what it is like, and what is expected of each estimator."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyro
import torch

RIGHT = ""  # an expectation: the estimator computes the value and its gradient


@dataclass(frozen=True)
class Users:
    """What a user holds: two functions or modules, and what SVI's step is called with."""

    model: Callable[..., object]
    guide: Callable[..., object]
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)

    @property
    def pair(self):
        return self.model, self.guide

    def call(self, function):
        """Call ``function(model, guide, *args, **kwargs)``: a method of an ELBO."""
        return function(self.model, self.guide, *self.args, **self.kwargs)

    @property
    def data(self):
        """What ``fit`` takes: a tensor, a tuple or a mapping of tensors with one leading dimension."""
        if self.kwargs:
            return dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 else self.args


@dataclass(frozen=True)
class Case:
    """A program and what is expected of it.

    Args:
        name: one or two words.
        make: builds networks, data and functions; :meth:`running` seeds it.
        traits: of ``global`` latents; ``discrete``, ``rejected`` or ``straight_through`` sites; networks that ``mixes``
            the examples; ``factor_score``, a factor that Pyro differentiates by the score; ``enumerated``; ``whole``,
            data that cannot be cut into batches; ``no_terms``, nothing sampled; ``not_renyi``, where RenyiELBO's bound
            is another.
        refused: estimator (or check: ``vectorized``, ``fit``, ``compiled``, ``evaluate``) -> the pattern of the
            refusal's message; all others are right.
    """

    name: str
    make: Callable[[], Users]
    traits: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    def expected(self, check: str) -> str:
        return self.refused.get(check, RIGHT)

    @contextmanager
    def running(self, seed: int = 0):
        """Build the program in float64, in a store of its own, under a seed; leave no global state changed."""
        dtype = torch.get_default_dtype()
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(seed)
            try:
                yield self.make()
            finally:
                torch.set_default_dtype(dtype)


def case(name, make, *traits, **refused):
    return Case(name, make, frozenset(traits), refused)
