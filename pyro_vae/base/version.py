"""The version of this package, and of others."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None where it is not installed.

    Example:
        >>> installed_versions(["no-such-package"])
        {'no-such-package': None}
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
