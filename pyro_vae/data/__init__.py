"""Images for variational autoencoders: published sets by name, and a user's own by path."""

from pyro_vae.data.catalogue import DATASETS, DataSet, is_path, load
from pyro_vae.data.images import BINARIZATIONS, Images, as_images

__all__ = ["BINARIZATIONS", "DATASETS", "DataSet", "Images", "as_images", "is_path", "load"]
