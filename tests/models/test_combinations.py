"""Every part of every table in a VAE: all estimators, both engines, particles one by one, save, load, resume.

The batteries of the families look at densities; this one looks at training. Data are drawn from the program itself.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from checks import assert_close

from pyro_vae import VAE, InputError, fit
from pyro_vae.elbo.catalogue import ESTIMATORS
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.svi import SVIEngine
from pyro_vae.models import Replicates
from pyro_vae.models.catalogue import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS
from pyro_vae.program.contexts import own_store
from pyro_vae.program.predictive import sample_prior
from pyro_vae.program.validation import check_particles, check_program

B = 6
SHAPE, Z = (3, 4), 2
SMALL = {  # where the defaults are of a real size
    "vamp": "vamp:components=4",
    **{name: f"{name}:hidden=[6]" for name in ("autoregressive_flow", "coupling_flow", "iaf", "spline", "planar")},
}
WITH = {"uniform_sphere": {"posterior": "projected_normal"}, "projected_normal": {"prior": "uniform_sphere"}}
PARTS = {
    **{f"likelihood {name}": {"likelihood": SMALL.get(name, name)} for name in LIKELIHOODS},
    **{f"prior {name}": {"prior": SMALL.get(name, name), **WITH.get(name, {})} for name in PRIORS},
    **{f"posterior {name}": {"posterior": SMALL.get(name, name), **WITH.get(name, {})} for name in POSTERIORS},
    "vamp of iaf": {"prior": "vamp:components=3", "posterior": "iaf:hidden=[4]"},
    "vamp of full_normal": {"prior": "vamp:components=3,learned_weights=true", "posterior": "full_normal"},
    "vamp of projected_normal": {"prior": "vamp:components=3", "posterior": "projected_normal"},
    "coupling_flow with normal_mixture": {"prior": "coupling_flow:hidden=[4]", "posterior": "normal_mixture"},
    **{f"network {name}": {"encoder": SMALL.get(name, name), "decoder": SMALL.get(name, name)} for name in NETWORKS},
}
# Estimators that refuse a part: a KL without a closed form, and a flow that is scored apart from its sample.
CLOSED = {"analytic_kl", "beta"}
AT_LEAVES = {"stl", "iwae_stl", "dreg", "miwae_dreg", "piwae", "piwae_dreg", "rebar", "rws_dreg"}
BY_SCORE = {"reinforce", "reinforce_moving_average", "vimco", "ovis", "ovis_mc", "wake_sleep", "rws", "tvo"}
UNCLOSED = ["mixture", "vamp", "autoregressive_flow", "coupling_flow", "uniform_sphere"]
REFUSED = {
    **{f"prior {name}": CLOSED for name in UNCLOSED},
    **{f"posterior {name}": CLOSED for name in ("iaf", "spline", "normal_mixture", "projected_normal")},
    "posterior planar": CLOSED | AT_LEAVES | BY_SCORE,
    **{name: CLOSED for name in PARTS if not name.startswith(("likelihood", "prior", "posterior", "network"))},
}
REASONS = r"a KL in closed form at site 'z'|got a flow without an inverse"
UNTRACED = {"posterior spline": "a selection of .* by a mask that depends on data"}  # engine compiled refuses


def make(parts, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE(SHAPE, Z, **parts).double()


def data(vae, count=B):
    """Draw data from the program itself: they are in the support of its likelihood."""
    with torch.random.fork_rng(), torch.no_grad(), own_store(vae):
        torch.manual_seed(1)
        return vae.decode(vae.p_z().sample((count,))).sample()


def test_the_page_lists_what_refuses_a_planar_flow():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("| `planar` |"))
    assert set(re.findall(r"`(\w+)`", row)) - {"planar", "vamp"} == AT_LEAVES | BY_SCORE


@pytest.mark.parametrize("name", PARTS)
class TestPart:
    def test_is_a_program_that_broadcasts(self, name):
        vae = make(PARTS[name])
        x = data(vae)
        check_program(vae, x)
        check_particles(vae, x)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_every_estimator_trains_it_or_says_why_not(self, name, estimator):
        vae = make(PARTS[name])
        x = data(vae)
        with own_store(vae), torch.random.fork_rng():
            torch.manual_seed(2)
            step = ESTIMATORS[estimator](num_particles=2).loss_and_grads
            if estimator in REFUSED.get(name, ()):
                with pytest.raises(InputError, match=REASONS) as raised:
                    step(vae.model, vae.guide, x)
                assert "\n" not in str(raised.value)
                return
            loss = step(vae.model, vae.guide, x)
        assert loss == loss
        assert abs(loss) < float("inf")
        unused = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert unused == []

    def test_both_engines_take_the_same_steps(self, name):
        before = make(PARTS[name])
        x, found = data(before), []
        if name in UNTRACED:
            with pytest.raises(InputError, match=UNTRACED[name]):
                CompiledEngine(before, SampledKL(2), inductor=False).__enter__().step(x, 1e-3)
            return
        for kind in (SVIEngine, CompiledEngine):
            vae = copy.deepcopy(before)
            more = {"inductor": False} if kind is CompiledEngine else {}
            with kind(vae, SampledKL(2), "sgd", None, kl_weighted=False, **more) as engine, torch.random.fork_rng():
                torch.manual_seed(5)
                infos = [engine.step(x[:size], 1e-3, 1.0) for size in (B, B - 2, B)]
            found.append((infos, vae.state_dict()))
        (ours, state), (theirs, reference) = found
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.objective == pytest.approx(other.objective, rel=1e-10)
            assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-10)
        for tensor, expected in zip(state.values(), reference.values(), strict=True):
            assert_close(tensor, expected)
        assert any(not torch.equal(reference[n], t) for n, t in before.state_dict().items())

    def test_replicates_take_a_step_in_one_graph(self, name):
        """The engine compares each of them with a single step on the same noise."""
        replicates = Replicates([make(PARTS[name], seed) for seed in range(2)])
        x = data(replicates.programs[0])
        with CompiledEngine(replicates, SampledKL(2), inductor=False) as engine, torch.random.fork_rng():
            torch.manual_seed(5)
            if name in UNTRACED:
                with pytest.raises(InputError, match=UNTRACED[name]):
                    engine.step(x, 1e-3)
            else:
                assert len(set(engine.step(x, 1e-3).replicates)) == 2

    def test_training_that_stops_and_resumes_is_bit_identical(self, name):
        x = data(make(PARTS[name]), 20)
        settings = {"batch_size": 8, "device": "cpu", "engine": "svi", "validation": x[:10]}
        whole, cut = make(PARTS[name]), make(PARTS[name])
        fit(whole, x, epochs=2, **settings)
        first = fit(cut, x, epochs=2, max_steps=4, **settings)
        resumed = make(PARTS[name], seed=9)  # its parameters come from the state
        fit(resumed, x, epochs=2, resume=first.state, **settings)
        for (one, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), one

    def test_a_loaded_program_has_the_same_terms(self, name):
        saved, loaded = make(PARTS[name]), make(PARTS[name], seed=9)
        x = data(saved)
        loaded.load_state_dict(saved.state_dict())
        found = []
        for vae in (saved.eval(), loaded.eval()):
            with own_store(vae), torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(3)
                found.append(draw_terms(vae, x, 3))
        for mine, theirs in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
            if isinstance(mine, torch.Tensor):
                assert torch.equal(mine, theirs)

    def test_samples_and_their_means_have_the_shape_of_the_data(self, name):
        vae = make(PARTS[name]).eval()
        drawn = sample_prior(vae, data(vae, 4))
        assert drawn.mean.shape == (4, *SHAPE)
        assert drawn.mean.isfinite().all()
