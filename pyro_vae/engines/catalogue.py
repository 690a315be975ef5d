"""The table of engines."""

from collections.abc import Callable

from pyro_vae.engines.compiled.engine import CompiledEngine
from pyro_vae.engines.protocol import Engine
from pyro_vae.engines.svi import SVIEngine

ENGINES: dict[str, Callable[..., Engine]] = {"svi": SVIEngine, "compiled": CompiledEngine}
