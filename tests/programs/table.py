"""The table: a new program is one row. An estimator that is not named in a row is right on it."""

import pyro.distributions as dist

from programs import counts, guides, labels, plates, sequences, shared
from programs.case import case

ONE_BY_ONE = r"vectorize_particles=False"  # the vectorized form is refused, and says what to do
UNTRACED = r"traced once"  # a number is read from a tensor
SUBSAMPLED = r"subsampl"  # the log of a mean over subsampled data with shared latents is biased
MIXES = r"normalisation in evaluation mode"  # an example's log w depends on other examples' latents
WEIGHTED = r"beta|weight|scale"  # derived for the unweighted KL alone
NO_LOG_Q = r"Delta"  # log q at any z is not available
STRAIGHT = r"straight-through|StraightThrough"
OWN_SAMPLES = r"scores only its own samples"
MASKED = r"selection of \d+ entries by a mask"
NO_SIZE = r"a size of plate"  # local latents are told from shared ones by their plates

# The guide's parameters are in a Delta's log_density (AutoStructured has them there, AutoNormal and AutoIAFNormal in a
# site of their own), so that log q has no score to treat by itself.
implicit = dict.fromkeys(("dreg", "reinforce", "vimco"), NO_LOG_Q)
no_noise = dict.fromkeys(("dreg", "reinforce", "vimco"), NO_LOG_Q)
weighted = dict.fromkeys(("dreg", "vimco"), WEIGHTED)
mixing = dict.fromkeys(("dreg", "vimco"), MIXES)
log_of_subsample = dict.fromkeys(("iwae", "dreg", "vimco"), SUBSAMPLED)

ROWS = [
    case("conditional vae", labels.conditional_vae, vectorized=ONE_BY_ONE, compiled=MASKED),
    case("m2 sampled", labels.m2_sampled, "discrete", compiled=UNTRACED),
    case("m2 labelled", labels.m2_labelled),
    case("m2 enumerated", labels.m2_enumerated, "enumerated"),
    case("cells", labels.cells(False, False, count=40), "discrete", "scaled", vectorized=ONE_BY_ONE, compiled=UNTRACED),
    case("cells labelled", labels.cells(True, False, count=4), "not_renyi", "scaled", vectorized=ONE_BY_ONE),
    case(
        "cells in training",
        labels.cells(False, True, count=4),
        "discrete",
        "mixes",
        "scaled",
        vectorized=ONE_BY_ONE,
        compiled=UNTRACED,
        **mixing,
    ),
    case("deep markov", sequences.deep_markov),
    case("deep markov annealed", sequences.deep_markov_annealed, "whole", **weighted),
    case("deep markov dropout", sequences.deep_markov_dropout),
    case("attend infer repeat", sequences.attend_infer_repeat, "discrete", vectorized=ONE_BY_ONE),
    case("topics", counts.topics(training=False), vectorized=ONE_BY_ONE, compiled=UNTRACED),
    case(
        "topics in training", counts.topics(training=True), "mixes", vectorized=ONE_BY_ONE, compiled=UNTRACED, **mixing
    ),
    case("topics from the left", counts.topics_from_the_left, vectorized=ONE_BY_ONE, compiled=UNTRACED),
    case("gamma family", counts.gamma_family, "global", "whole"),
    case("rejection gamma", counts.standard, "whole", "rejected"),
    case("augmented gamma", counts.augmented, "whole", "rejected", stl=OWN_SAMPLES, dreg=OWN_SAMPLES),
    case("bayesian decoder", shared.bayesian_decoder(scaled=False), "global"),
    case("bayesian decoder N/B", shared.bayesian_decoder(scaled=True), "global", "whole", **log_of_subsample),
    case("mixture", shared.mixture(3), "global", "discrete", compiled=UNTRACED),
    case("mixture of B components", shared.mixture(4), "global", "discrete", compiled=UNTRACED),
    case("components as examples", shared.component_weights, "global", "whole"),
    case("regression", shared.regression(None), "global"),
    case("regression subsampled", shared.regression(5), "global", "whole", **log_of_subsample),
    case("auto normal", shared.automatic("AutoNormal"), "global"),
    case("auto multivariate", shared.automatic("AutoMultivariateNormal"), "global"),
    case("auto iaf", shared.automatic("AutoIAFNormal", hidden_dim=[5], num_transforms=1), "global"),
    case("auto structured", shared.automatic("AutoStructured"), "global", **no_noise),
    case("auto delta", shared.automatic("AutoDelta"), "global", **no_noise),
    case("nested pixels", plates.nested_pixels),
    case("examples at dim -2", plates.examples_at_minus_two),
    case("missing pixels", plates.missing_pixels),
    case("masked examples", plates.masked_examples),
    case("plate without size", plates.plate_without_size(shared=False)),
    case(
        "plate without size, shared", plates.plate_without_size(shared=True), "global", "not_renyi", local_iwae=NO_SIZE
    ),
    case("subsampled plate", plates.subsampled_plate, "whole", "not_renyi"),
    case("factor", shared.factor),
    case("factor by score", shared.factor_by_score, "factor_score", vectorized=ONE_BY_ONE),
    case("implicit delta", guides.implicit_delta, vectorized=ONE_BY_ONE, **implicit),
    case("hierarchical", guides.hierarchical),
    case("auxiliary", guides.guide_auxiliary),
    case("one hot", guides.one_hot(dist.OneHotCategorical), "discrete", compiled=UNTRACED),
    case(
        "straight through",
        guides.one_hot(dist.OneHotCategoricalStraightThrough),
        "straight_through",
        dreg=STRAIGHT,
        compiled=UNTRACED,
    ),
    case("dropout", guides.dropout_of_two),
    case("empty guide", guides.supervised(guides.nothing), "no_terms"),
    case("guide without samples", guides.supervised(guides.plate_alone), "no_terms"),
]
CASES = {row.name: row for row in ROWS}
