"""ArviZ 0.23 and 1.x behind the same functions; no other module imports it.

ArviZ 1.x is three packages, and ``psislw`` changed its sign: it took log weights and now takes negative log weights.

ArviZ is imported on first use: importing 0.23 writes a file and warns, once a day, about 1.x.
"""

import functools
import importlib
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray

ArvizData: TypeAlias = Any  # InferenceData (0.x) or a DataTree (1.x): no type fits both
ARVIZ_1 = int(version("arviz").partition(".")[0]) >= 1


@functools.cache
def imported(name: str) -> Any:
    """Import a module of ArviZ or of its dependencies, without its daily warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "\\nArviZ is undergoing a major refactor", FutureWarning)
        return importlib.import_module(name)


def pareto_shape(log_weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the shape k̂ of the generalized Pareto distribution that ArviZ fits to the largest weights of each row.

    Call :func:`pyro_vae.evaluation.methods.pareto_k` instead: it handles rows without a tail to fit, for which the two
    versions return and raise different things.

    Args:
        log_weights: (B, K), natural logarithms; not changed.

    Returns:
        (B,), NaN or infinite where no fit was found.
    """
    with np.errstate(all="ignore"):  # the fit tries shapes that overflow and gives them no weight
        if ARVIZ_1:
            _, shape = imported("arviz_stats.base").array_stats.psislw(-log_weights)
        else:
            _, shape = imported("arviz").psislw(log_weights)
    return np.asarray(shape, dtype=np.float64)


def to_arviz(groups: "Mapping[str, xarray.Dataset]", attributes: Mapping[str, object]) -> ArvizData:
    """Return labelled groups as ArviZ's data structure: ``InferenceData`` (0.x) or an xarray ``DataTree`` (1.x).

    Args:
        groups: group (``posterior``, ``observed_data``, ...) -> variables with named dimensions.
        attributes: of the whole file, numbers and text.
    """
    if ARVIZ_1:
        tree = imported("xarray").DataTree.from_dict(dict(groups))
        tree.attrs.update(attributes)
        return tree
    return imported("arviz").InferenceData(dict(attributes), False, **groups)


def write_netcdf(path: Path, found: ArvizData) -> None:
    """Write what :func:`to_arviz` returned as netCDF 4, by h5netcdf; both versions of ArviZ open the file."""
    packed = {"zlib": True}
    if ARVIZ_1:
        encoding = {f"/{n}": dict.fromkeys(group.data_vars, packed) for n, group in found.children.items()}
        found.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    else:
        found.to_netcdf(str(path), engine="h5netcdf", compress=True)
