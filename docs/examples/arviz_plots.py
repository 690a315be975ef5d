# %% [markdown]
# # The draws of an evaluation, as ArviZ plots them
#
# `pyro-vae evaluate RUN --netcdf draws.nc` writes them; `python arviz_plots.py draws.nc` draws three pictures. The
# cells run in a notebook as well, with ArviZ 0.x (`InferenceData`) and 1.x (`DataTree`).
#
# The group `posterior` holds independent draws of q(z|x): ArviZ's plots of draws apply, its diagnostics of Markov
# chains do not. Whether q may be taken for the posterior is what k-hat says, example by example.

# %%
import sys

import arviz as az
import matplotlib.pyplot as plt
import numpy as np

ARVIZ_1 = int(az.__version__.partition(".")[0]) >= 1

data = az.from_netcdf(sys.argv[1])
example = int(data.posterior["example"][0])  # the first of the file; the number counts as the held-out data do
print(data.posterior)
print(data.attrs["pixels"])

# %% [markdown]
# ## Posterior
#
# What q says of the latents of one example.

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
# One for each example: below 0.5 the weights of q are good, up to 0.7 usable, above not to be trusted.

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
