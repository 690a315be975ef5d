"""The one place that imports ArviZ: 0.23 and 1.x behind the same functions.

ArviZ 1.x is three packages, and some functions changed their sign on the way: ``psislw`` took log weights and takes the
negated log ratios.

It is imported when it is first needed: importing ArviZ 0.23 writes a file and warns, once a day, of the coming of 1.x.
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
    """Import a module of ArviZ, or of what it stands on, and leave out its daily notice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "\\nArviZ is undergoing a major refactor", FutureWarning)
        return importlib.import_module(name)


def pareto_shape(log_weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the shape k̂ of the generalized Pareto distribution that ArviZ fits to the largest weights of each row.

    Where a row has no tail that could be fitted the two versions differ, in what they return and in what they raise:
    :func:`pyro_vae.evaluation.methods.pareto_k` treats those rows and is what to call.

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
    """Return labelled groups as ArviZ keeps them: ``InferenceData`` (0.x) or an xarray ``DataTree`` (1.x).

    Args:
        groups: group (``posterior``, ``observed_data``, ...) -> variables with named dimensions.
        attributes: of the whole, numbers and text.
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
