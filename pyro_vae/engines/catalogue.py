"""The table of engines."""

from collections.abc import Callable

from pyro_vae.engines.select import Auto, Compiled, StockSVI

ENGINES: dict[str, Callable[..., StockSVI | Compiled | Auto]] = {"svi": StockSVI, "compiled": Compiled, "auto": Auto}
