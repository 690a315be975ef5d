"""Engine ``compiled``: the program traced once to a static graph, compiled by Inductor."""

from pyro_vae.engines.compiled.terms import CompiledTerms

__all__ = ["CompiledTerms"]
