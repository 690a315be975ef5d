"""Pictures: the layout to the pixel, what is drawn for which program, and that the files are pictures."""

import numpy as np
import pyro
import pytest
import torch
from partial_programs import FlowPosterior, Forced, Reshaped, Simulating, X, no_latents
from PIL import Image
from scipy.stats import norm

from pyro_vae import VAE, InputError
from pyro_vae.base.random import isolated_rng
from pyro_vae.data import DataSet, Images
from pyro_vae.figures import curves, gallery
from pyro_vae.figures import images as plots
from pyro_vae.program import as_program
from pyro_vae.program.predictive import reconstruct
from pyro_vae.training.loop import EpochRecord

CPU = torch.device("cpu")
G = 0.5  # the lines between tiles


def make_vae(event_shape=(6, 5), latent_dim=2, **options):
    with isolated_rng(CPU, 0):
        return VAE(event_shape, latent_dim=latent_dim, hidden=(8,), **options)


def make_data(event_shape=(6, 5), n=12, labels=True, binarize="dynamic"):
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *event_shape), dtype=torch.uint8, generator=draws)
    images = Images(pixels, labels=torch.arange(n) % 3 if labels else None, binarize=binarize)
    return DataSet("made", images, images, images, "here")


def record(epoch, bound=-90.0, kl_weight=1.0):
    return EpochRecord(epoch, 10 * epoch, -100.0 + epoch, kl_weight, 1e-3, 1.0, bound, 0.5, True)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# ---- layout


def test_tile_to_the_pixel():
    images = torch.tensor([[[0.1, 0.2]], [[0.3, 0.4]], [[0.6, 0.7]]])
    expected = [
        [G, G, G, G, G, G, G],
        [G, 0.1, 0.2, G, 0.3, 0.4, G],
        [G, G, G, G, G, G, G],
        [G, 0.6, 0.7, G, G, G, G],
        [G, G, G, G, G, G, G],
    ]
    np.testing.assert_allclose(plots.tile(images, columns=2), expected, rtol=1e-6)


def test_tile_of_one_channel_is_grey():
    images = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    assert (plots.tile(images[:, None], columns=2) == plots.tile(images, columns=2)).all()


def test_tile_of_colours():
    images = torch.zeros(2, 3, 1, 2)
    images[0, 0, 0, 0] = 1.0  # red, first image, first pixel
    images[1, 2, 0, 1] = 0.8  # blue, second image, second pixel
    canvas = plots.tile(images, columns=2)
    assert canvas.shape == (3, 7, 3)
    np.testing.assert_allclose(canvas[1], [[G] * 3, [1, 0, 0], [0, 0, 0], [G] * 3, [0, 0, 0], [0, 0, 0.8], [G] * 3])
    assert (canvas[[0, 2]] == G).all()


def test_tile_of_data_of_one_dimension():
    expected = [[G] * 4, [G, 0.0, 1.0, G], [G] * 4, [G, 1.0, 0.25, G], [G] * 4]
    assert plots.tile(torch.tensor([[0.0, 1.0], [1.0, 0.25]]), columns=1).tolist() == expected


def test_tile_cuts_off_what_is_no_grey():
    assert plots.tile(torch.tensor([[[-3.0, 0.5, 7.0]]]), columns=1)[1].tolist() == [G, 0.0, 0.5, 1.0, G]


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5, 5), (2, 2, 3, 5, 5)])
def test_tile_refuses_other_shapes(shape):
    with pytest.raises(
        InputError, match=r"images \(n, H, W\) or \(n, 1 or 3, H, W\); got shape .* Try pyro-vae sample"
    ):
        plots.tile(torch.zeros(shape), columns=1)


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3), (64, 8, 8)])
def test_grid_is_square_by_default(n, rows, columns, tmp_path, monkeypatch):
    seen = []
    tile = plots.tile
    monkeypatch.setattr(plots, "tile", lambda *args: seen.append(tile(*args)) or seen[-1])
    plots.plot_grid(tmp_path / "x.png", torch.zeros(n, 4, 4), "title")
    assert seen[0].shape == (5 * rows + 1, 5 * columns + 1)


def test_grid_shows_every_pixel_of_the_canvas(tmp_path):
    """A chequered picture comes out as it went in: grey levels in the file are those of the data."""
    levels = torch.tensor([[[0.0, 1.0], [0.2, 0.8]]])
    found = pixels(plots.plot_grid(tmp_path / "x.png", levels, ""))
    assert (found.max(-1) == found.min(-1)).all(), "a grey picture has colours"
    for level in (0.0, 0.2, 0.5, 0.8):  # white is the margin too
        share = (np.abs(found[..., 0].astype(float) - 255 * level) <= 1).mean()
        assert share > 0.03, f"level {level} is missing"


def test_reconstructions_stand_below_their_originals(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "plot_grid", lambda path, images, title, columns: seen.append((images, columns)))
    x = torch.arange(12.0)[:, None, None].expand(12, 2, 2)
    plots.plot_pairs(tmp_path / "x.png", x, 100 + x)
    ((images, columns),) = seen
    assert columns == 10
    blank = [1.0] * 8
    expected = [*range(10), *range(100, 110), 10, 11, *blank, 110, 111, *blank]
    assert images[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("side", [1, 2, 5, 20])
def test_quantile_grid_is_that_of_the_normal_distribution(side):
    grid = gallery.quantile_grid(side).reshape(side, side, 2).double().numpy()
    quantiles = norm.ppf((np.arange(side) + 0.5) / side)
    np.testing.assert_allclose(grid[..., 0], np.broadcast_to(quantiles, (side, side)), atol=1e-6)
    np.testing.assert_allclose(grid[..., 1], np.broadcast_to(quantiles[::-1, None], (side, side)), atol=1e-6)


# ---- what is drawn


@pytest.mark.parametrize(
    ("event_shape", "latent_dim", "likelihood"),
    [
        ((6, 5), 2, "bernoulli"),
        ((6, 5), 3, "bernoulli"),
        ((6, 5), 1, "bernoulli"),
        ((3, 6, 5), 2, "learned_gaussian"),
        ((1, 6, 5), 2, "gaussian:scale=0.2"),
        ((7,), 2, "bernoulli"),
    ],
)
@pytest.mark.parametrize("labels", [False, True])
def test_every_picture_that_suits_the_program(event_shape, latent_dim, likelihood, labels, tmp_path):
    binarize = "dynamic" if likelihood == "bernoulli" else "none"
    vae, data = make_vae(event_shape, latent_dim, likelihood=likelihood), make_data(event_shape, 12, labels, binarize)
    files = gallery.plot_all(tmp_path / "pictures", vae, data, [record(1), record(2)], CPU).files
    names = {"reconstructions.png", "samples.png", "curves.png"}
    names |= {"manifold.png", "latent.png"} if latent_dim == 2 else set()
    assert {path.name for path in files} == names == {path.name for path in (tmp_path / "pictures").iterdir()}
    for path in files:
        found = pixels(path)
        assert min(found.shape[:2]) >= 50
        assert found.std() > 5, f"{path.name} is blank"
        assert path.stat().st_size > 1000


def test_no_curves_before_the_first_epoch(tmp_path):
    files = gallery.plot_all(tmp_path, make_vae(latent_dim=3), make_data(), [], CPU).files
    assert {path.name for path in files} == {"reconstructions.png", "samples.png"}
    with pytest.raises(InputError, match=r"a run with at least one finished epoch; got none. Try resuming the run"):
        curves.plot_training_curves(tmp_path / "curves.png", [])


def test_pictures_follow_their_seed_and_touch_no_other_random_state(tmp_path):
    vae, data = make_vae(), make_data()
    before = torch.get_rng_state()
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        gallery.plot_samples(tmp_path / f"{number}.png", vae, data.test, 4, seed)
        drawn.append(pixels(tmp_path / f"{number}.png"))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_manifold_is_the_decoder_on_the_grid(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "plot_grid", lambda path, images, title, columns: seen.append((images, columns)))
    vae, data = make_vae(), make_data()
    gallery.plot_manifold(tmp_path / "x.png", vae, data.test, "z", 0)
    ((images, columns),) = seen
    assert columns == gallery.SIDE
    with torch.no_grad():
        torch.testing.assert_close(images, vae.decode(gallery.quantile_grid(gallery.SIDE)).mean)


def test_the_manifold_of_another_normal_is_on_its_own_quantiles(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "plot_grid", lambda path, images, title, columns: seen.append(images))
    vae, data = make_vae(prior="normal:loc=[1,-1],scale=[2,0.5]"), make_data()
    gallery.plot_manifold(tmp_path / "x.png", vae, data.test, "z", 0)
    z = torch.tensor([1.0, -1.0]) + torch.tensor([2.0, 0.5]) * gallery.quantile_grid(gallery.SIDE)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], vae.decode(z).mean)
        assert not torch.allclose(seen[0], vae.decode(gallery.quantile_grid(gallery.SIDE)).mean, atol=1e-3)


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        ("mixture", "iaf"),
        ("vamp:components=4", "full_normal"),
        ("coupling_flow", "spline"),
        ("uniform_sphere", "projected_normal"),
    ],
)
def test_no_manifold_of_a_prior_without_quantiles(prior, posterior, tmp_path):
    """The other pictures are plotted."""
    found = gallery.plot_all(tmp_path, make_vae(prior=prior, posterior=posterior), make_data(), [], CPU)
    assert list(found.left_out) == ["manifold.png"]
    assert "one normal of independent latents, for its quantiles; got" in found.left_out["manifold.png"]
    assert {p.name for p in found.files} == {"samples.png", "reconstructions.png", "latent.png"}


def test_no_manifold_of_a_prior_that_differs_between_examples(tmp_path):
    class Conditional(Reshaped):
        def prior(self, x):
            return pyro.distributions.Normal(x.flatten(1)[:, :2], 1.0).to_event(1)

    with pytest.raises(InputError, match="got one that differs between examples"):
        gallery.plot_manifold(tmp_path / "x.png", Conditional(), partial_data().test, "z", 0)


def test_the_scatter_holds_the_posterior_means(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(gallery, "plot_latent_means", lambda path, means, labels, how: seen.append((means, labels)))
    vae, data = make_vae(), make_data()
    gallery.plot_latents(tmp_path / "x.png", vae, data.test, "z", 3)
    ((means, labels),) = seen
    with torch.no_grad():
        torch.testing.assert_close(means, vae.encode(data.test.binarized(3)).mean)
    assert labels.tolist() == data.test.labels.tolist()


def test_reconstructions_are_of_the_first_test_images(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "plot_pairs", lambda path, x, means, what: seen.append((x, means)))
    vae, data = make_vae(), make_data()
    gallery.plot_reconstructions(tmp_path / "x.png", vae, data.test, 5, seed=4)
    ((x, means),) = seen
    assert torch.equal(x, data.test.binarized(4)[:5])
    with isolated_rng(CPU, 4):
        torch.testing.assert_close(means, reconstruct(vae, x).mean)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 1.0]])
def test_curves_separate_objectives_from_bounds(weights, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    history = [record(n, kl_weight=weight) for n, weight in enumerate(weights, start=1)]
    curves.plot_training_curves(tmp_path / "x.png", history)
    axis = figures[0].axes[0]
    lines = {line.get_label().split(",")[0].split(" while")[0]: line.get_ydata() for line in axis.lines}
    whole = [record.objective if record.kl_weight == 1 else np.nan for record in history]
    np.testing.assert_array_equal(lines["training objective"], whole)
    np.testing.assert_array_equal(lines["held-out bound"], [-90.0, -90.0])
    assert ("the same" in lines) == (weights[0] != 1.0)
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (-91.0, -89.0)


def test_no_global_setting_of_matplotlib_is_touched(tmp_path):
    import matplotlib  # noqa: PLC0415  only to look at

    before = dict(matplotlib.rcParams)
    plots.plot_grid(tmp_path / "x.png", torch.zeros(4, 4, 4), "title")
    assert dict(matplotlib.rcParams) == before


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a file that can be written; got .*x\.png: Not a directory"):
        plots.plot_grid(tmp_path / "file" / "x.png", torch.zeros(1, 4, 4), "title")


# ---- programs of which not everything is available


def partial_data(labels=False):
    pixels = torch.randn(12, 2, 2, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, labels=torch.arange(12) % 3 if labels else None)
    return DataSet("made", images, images, images, "here")


class FlatForced(Forced):
    """Teacher forcing on flattened images."""

    def guide(self, x):
        super().guide(x.flatten(1))

    def observe(self, x, mean, z):
        super().observe(x.flatten(1), mean, z)


class FlatSimulating(FlatForced, Simulating):
    def simulate(self, num_examples):
        x, latents = super().simulate(num_examples)
        return x.reshape(-1, 2, 2), latents


class FlatFlow(FlowPosterior):
    def guide(self, x):
        super().guide(x.flatten(1))

    def observe(self, x, mean, z):
        super().observe(x.flatten(1), mean, z)


def test_a_model_that_looks_at_x_has_curves_and_latents_and_no_samples(tmp_path):
    found = gallery.plot_all(tmp_path, FlatForced(), partial_data(), [record(1)], CPU)
    assert {path.name for path in found.files} == {"curves.png", "latent.png"}
    assert set(found.left_out) == {"samples.png", "reconstructions.png", "manifold.png"}
    assert all("does not look at x" in why for why in found.left_out.values())
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "latent.png"}


def test_its_own_simulation_is_pictured(tmp_path, monkeypatch):
    titles = []
    plot_grid = plots.plot_grid
    monkeypatch.setattr(plots, "plot_grid", lambda *args, **kw: titles.append(args[2]) or plot_grid(*args, **kw))
    found = gallery.plot_all(tmp_path, FlatSimulating(), partial_data(), [], CPU)
    assert {path.name for path in found.files} == {"samples.png", "latent.png"}
    assert titles == ["samples: sample by simulate, z ~ p(z)"]


def test_a_reshaped_observation_is_pictured(tmp_path):
    found = gallery.plot_all(tmp_path, Reshaped(), partial_data(), [], CPU)
    assert found.left_out == {}
    assert {p.name for p in found.files} == {"samples.png", "reconstructions.png", "manifold.png", "latent.png"}


def test_pictures_say_where_there_is_no_mean(tmp_path, monkeypatch):
    titles = []
    for module, name in ((plots, "plot_grid"), (gallery, "plot_latent_means")):
        plot = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, _p=plot, **kw: titles.append(args[2:]) or _p(*args, **kw))
    assert gallery.plot_all(tmp_path, FlatFlow(), partial_data(), [], CPU).left_out == {}
    words = [" ".join(map(str, title)) for title in titles]
    assert all("sample of p(x|z), which has no mean" in title for title in words[:3])
    assert "of 50 samples: q has no mean" in words[3]
    assert len(words) == 4


def test_a_model_without_latents_has_no_plane():
    program = as_program(no_latents(), X)
    assert gallery.planar_latent(program, Images(X)) is None
