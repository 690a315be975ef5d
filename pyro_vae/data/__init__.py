"""Data for variational autoencoders: published sets by name, user files by path, tensors, arrays and data loaders."""

from pyro_vae.data.catalogue import DATASETS, DataSet, is_path, load
from pyro_vae.data.columns import Columns, Data
from pyro_vae.data.given import Given, as_data
from pyro_vae.data.images import BINARIZATIONS, Images, as_images

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "Columns",
    "Data",
    "DataSet",
    "Given",
    "Images",
    "as_data",
    "as_images",
    "is_path",
    "load",
]
