"""Images for variational autoencoders: published data sets by name, and user files by path."""

from pyro_vae.data.catalogue import DATASETS, DataSet, is_path, load
from pyro_vae.data.images import BINARIZATIONS, Images, as_images

__all__ = ["BINARIZATIONS", "DATASETS", "DataSet", "Images", "as_images", "is_path", "load"]
