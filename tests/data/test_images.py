"""Images: what a batch is, and what cannot be one."""

import pytest
import torch

from pyro_vae.base.errors import InputError
from pyro_vae.data import BINARIZATIONS, Images, as_images

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
GREY = torch.arange(256, dtype=torch.uint8).reshape(16, 4, 4)


def generator(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.mark.parametrize("binarize", BINARIZATIONS)
@pytest.mark.parametrize("index", [torch.tensor([3, 0, 3]), slice(2, 5)], ids=["tensor", "slice"])
def test_batch_is_float32_in_the_unit_interval_on_the_device(binarize, index, device):
    images = Images(GREY, torch.arange(16), binarize=binarize).to(device)
    x = images.batch(index)
    assert x.shape == (3, 4, 4)
    assert x.dtype == torch.float32
    assert x.device.type == images.device.type == device
    assert 0 <= x.min() <= x.max() <= 1
    assert images.is_binary == (binarize != "none") == bool(((x == 0) | (x == 1)).all())


@pytest.mark.parametrize("top", [1, 16, 255])
def test_levels_are_divided_by_the_greatest(top):
    levels = torch.arange(top + 1, dtype=torch.uint8)[:, None]
    x = Images(levels, max_value=top).batch(slice(None))
    expected = torch.arange(top + 1, dtype=torch.float64)[:, None] / top
    torch.testing.assert_close(x.double(), expected, rtol=1e-7, atol=0)


def test_threshold_is_one_from_half_upwards():
    x = Images(torch.tensor([[0.0, 0.49999, 0.5, 1.0]]), binarize="threshold").batch(slice(None))
    assert x.tolist() == [[0, 0, 1, 1]]
    assert Images(GREY, binarize="threshold").batch(slice(None)).sum() == 128


def test_dynamic_draws_ones_as_often_as_the_level_says():
    draws = 4000
    images = Images(GREY.reshape(1, 256), binarize="dynamic")
    x = images.batch(torch.zeros(draws, dtype=torch.int64), generator(0)).double()
    p = torch.arange(256, dtype=torch.float64) / 255
    error = (p * (1 - p) / draws).sqrt()
    assert ((x.mean(0) - p).abs() <= 5 * error).all()  # exact at 0 and 255, where the error is 0


def test_one_seed_gives_one_draw_and_another_seed_another(device):
    images = Images(GREY, binarize="dynamic").to(device)
    index = torch.arange(16, device=device)
    first, again, other = (images.batch(index, generator(seed, device)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images.binarized(1), images.binarized(1))
    assert not torch.equal(images.binarized(1), images.binarized(2))


def test_drawing_leaves_the_global_generator_alone():
    images = Images(GREY, binarize="dynamic")
    before = torch.get_rng_state()
    images.binarized(3)
    images.batch(slice(None), generator(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_pixels_are_used_as_they_are(dtype):
    x = torch.randn(5, 3, dtype=dtype, generator=generator(0))
    images = as_images(x)
    assert images.batch(slice(None)).dtype == dtype
    assert torch.equal(images.batch(torch.tensor([4])), x[4:])
    assert not images.is_binary


def test_batches_do_not_follow_the_default_dtype(monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        assert Images(GREY).batch(slice(None)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_subset_keeps_pixels_labels_and_settings():
    images = Images(GREY, torch.arange(16), binarize="threshold")
    part = images.subset(torch.tensor([5, 2]))
    assert len(part) == 2
    assert part.event_shape == (4, 4)
    assert part.binarize == "threshold"
    assert part.labels.tolist() == [5, 2]
    assert torch.equal(part.pixels, GREY[[5, 2]])


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.tensor([[True, False]]), [[1, 0]]),
        (torch.tensor([[1, 0]], dtype=torch.uint8), [[1, 0]]),
        (torch.tensor([[255, 0]], dtype=torch.uint8), [[1, 0]]),
        (torch.tensor([[0, 0]], dtype=torch.uint8), [[0, 0]]),
        (torch.tensor([[1.0, 0.0]]), [[1, 0]]),
    ],
    ids=["bool", "uint8 of 0 and 1", "uint8 of 0 and 255", "black", "floating"],
)
def test_binary_tensors_become_binary_images(pixels, expected):
    images = as_images(pixels)
    assert images.is_binary
    assert images.batch(slice(None)).tolist() == expected


def test_images_print_their_size_and_not_their_pixels():
    pixels = torch.zeros(3, 2, 4, dtype=torch.uint8)
    assert repr(Images(pixels, binarize="dynamic")) == "Images(3 of 2x4, torch.uint8, binarize='dynamic', cpu)"
    assert "labels" in repr(Images(pixels, labels=torch.arange(3)))


def test_as_images_returns_images_unchanged():
    images = Images(GREY)
    assert as_images(images) is images
    assert torch.equal(as_images(GREY).batch(slice(None)), images.batch(slice(None)))


BAD_TENSORS = {
    "array": ([[1.0]], r"Expected images, a tensor or an array; got list\. Try .*torch\.as_tensor"),
    "int64": (torch.zeros(2, 2, dtype=torch.int64), r"uint8 or floating pixels; got torch\.int64\. Try"),
    "complex": (torch.zeros(2, 2, dtype=torch.complex64), r"got torch\.complex64"),
    "0-d": (torch.tensor(1.0), r"shape \(N, \.\.\.\); got shape \(\)"),
    "1-d": (torch.rand(3), r"got shape \(3,\)\. Try x\.unsqueeze\(0\)"),
    "1-d bool": (torch.tensor([True]), r"got shape \(1,\)"),
    "no image": (torch.rand(0, 3), r"at least one image; got shape \(0, 3\)"),
    "no pixel": (torch.rand(3, 0), r"at least one image; got shape \(3, 0\)"),
    "NaN": (torch.tensor([[0.0, float("nan")]]), r"Expected finite pixels; got NaN or infinity\. Try"),
    "infinite": (torch.tensor([[0.0, float("inf")]]), r"Expected finite pixels"),
}


@pytest.mark.parametrize(("tensor", "match"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_what_cannot_be_images_is_refused(tensor, match):
    with pytest.raises(InputError, match=match):
        as_images(tensor)


BAD_SETTINGS = {
    "binarize": ({"binarize": "dynamc"}, r"Expected a binarization, one of .*; got 'dynamc'\. Try 'dynamic'"),
    "max_value": ({"max_value": 0}, r"max_value from 1 to 255; got 0"),
    "levels": ({"max_value": 16}, r"pixels from 0 to 16; got 0 to 255\. Try"),
    "short labels": ({"labels": torch.arange(3)}, r"labels of shape \(16,\), torch\.int64; got shape \(3,\)"),
    "float labels": ({"labels": torch.rand(16)}, r"labels .*; got shape \(16,\), torch\.float32"),
    "range": ({"pixels": torch.tensor([[1.5]]), "binarize": "dynamic"}, r"pixels from 0 to 1; got 1\.5 to 1\.5"),
    "NaN": ({"pixels": torch.tensor([[float("nan")]]), "binarize": "threshold"}, r"from 0 to 1; got nan"),
}


@pytest.mark.parametrize(("settings", "match"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_images_check_their_fields(settings, match):
    with pytest.raises(InputError, match=match):
        Images(**{"pixels": GREY, **settings})
