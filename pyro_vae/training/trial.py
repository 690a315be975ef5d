"""The estimator, tried on the program before the first step."""

import copy

from pyro import validation_enabled
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled

from pyro_vae.base.batch import Batch, arguments
from pyro_vae.base.errors import InputError
from pyro_vae.elbo.estimator import Estimator
from pyro_vae.elbo.stock import losses_of, sums_sites
from pyro_vae.program.explain import FOUND, explained, program_error
from pyro_vae.program.handlers import WeightLatents
from pyro_vae.program.protocol import Program
from pyro_vae.program.validation import BROADCASTS, Need, check_once, check_program, trying

TRIED = 10  # examples: another batch size than the program was checked on
PLAIN = (Trace_ELBO, TraceMeanField_ELBO)  # take what runs


def try_estimator(
    estimator: ELBO, program: Program, example: Batch, need: Need, *, ragged: bool, kl_weighted: bool
) -> None:
    """Run the program once as a step will, on another batch size than before; the estimator may refuse it.

    Args:
        estimator: ours or Pyro's, which keeps its state.
        program: the program, which keeps its parameters and their gradients.
        example: some examples.
        need: what the program is checked for.
        ragged: whether an epoch ends with a smaller batch: then a smaller one is tried after the first.
        kl_weighted: whether steps weight the KL.

    Raises:
        InputError: the estimator does not take the program.
    """
    x = example[: min(TRIED, len(example) - 1)] if len(example) > 2 else example
    estimator = copy.deepcopy(estimator)
    if not isinstance(estimator, Estimator):
        check_once(program, x, need=need, summed=sums_sites(estimator))
        if type(estimator) not in PLAIN:
            _try_stock(estimator, program, [x, x[:-1]] if ragged and len(x) > 1 else [x], 0.5 if kl_weighted else 1.0)
        return
    try:
        with trying(program, x.device), explained(BROADCASTS):
            estimator.of_draw(estimator.draw(program.model, program.guide, *arguments(x)))
    except InputError:
        check_program(program, example, need=need)  # says more, where the program is wrong by itself
        raise


def _try_stock(estimator: ELBO, program: Program, batches: list[Batch], kl_weight: float) -> None:
    """Run the gradient of an estimator of Pyro on batches, one after the other, and leave no gradient behind."""
    kind, validates = type(estimator).__name__, is_validation_enabled()
    kept = [(parameter, parameter.grad) for parameter in program.parameters()]
    model, guide = (WeightLatents(kl_weight)(function) for function in (program.model, program.guide))
    try:
        for parameter, _ in kept:
            parameter.grad = None
        with trying(program, batches[0].device), validation_enabled(validates):
            for x in batches:
                args, kwargs = arguments(x)
                losses_of(estimator).loss_and_grads(model, guide, *args, **kwargs)
    except InputError:
        raise
    except (*FOUND, AssertionError) as error:
        several = f"{len(batches[0])} examples"
        hint = "another estimator"
        if len(batches) > 1:
            several += f" and {len(batches[1])} after them, as an epoch ends with a smaller batch"
            hint = "a batch_size that divides the number of examples, or another estimator"
        raise program_error(error, f"that {kind} takes, on {several}", hint) from error
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
