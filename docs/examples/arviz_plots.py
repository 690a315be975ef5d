# %% [markdown]
# # ArviZ plots of an evaluation
#
# `pyro-vae evaluate RUN --netcdf draws.nc` writes the file; `python arviz_plots.py draws.nc` plots three figures. The
# cells also run in a notebook, with ArviZ 0.x (`InferenceData`) and 1.x (`DataTree`).
#
# The group `posterior` holds independent samples of q(z|x): ArviZ's plots of samples apply, its diagnostics of Markov
# chains do not. k-hat says, for each example, whether q is close enough to the posterior for importance sampling.

# %%
import sys

import arviz as az
import matplotlib.pyplot as plt
import numpy as np

ARVIZ_1 = int(az.__version__.partition(".")[0]) >= 1

data = az.from_netcdf(sys.argv[1])
example = int(data.posterior["example"][0])  # the first in the file; its index in the held-out data
print(data.posterior)
print(data.attrs["pixels"])

# %% [markdown]
# ## Posterior
#
# q(z|x) of one example.

# %%
if ARVIZ_1:
    az.plot_dist(data, var_names=["z"], coords={"example": example})
else:
    az.plot_posterior(data, var_names=["z"], coords={"example": example})
plt.savefig("posterior.png")

# %% [markdown]
# ## Pairs
#
# Two latent dimensions of the same example. A diagonal q shows no correlation here, whatever the posterior has.

# %%
chosen = {"example": example, "z_dim": [0, 1]}
if ARVIZ_1:
    az.plot_pair(data, var_names=["z"], coords=chosen)
else:
    az.plot_pair(data, var_names=["z"], coords=chosen, kind="kde")
plt.savefig("pair.png")

# %% [markdown]
# ## k-hat
#
# One for each example: below 0.5 the weights of q are good, up to 0.7 usable, above unreliable.

# %%
k_hat = data.sample_stats["k_hat"]
if ARVIZ_1:
    figure, axes = plt.subplots()
    axes.plot(np.arange(len(k_hat)), k_hat, "+")
    for limit in (0.5, 0.7):
        axes.axhline(limit, linestyle="--", color="grey")
    axes.set(xlabel="example", ylabel="k-hat")
else:
    az.plot_khat(k_hat, show_hlines=True)
plt.savefig("k_hat.png")
