"""Engines and peers side by side in one run: how fast, how much memory, and whether they do the same maths."""

from pyro_vae.studies.benchmark.goals import outcomes
from pyro_vae.studies.benchmark.machine import describe_machine
from pyro_vae.studies.benchmark.records import Report, Row, SizeReport, Spread, spread
from pyro_vae.studies.benchmark.sizes import SIZES, Size
from pyro_vae.studies.benchmark.suite import COMPILES, SCALING, VARIANTS, Plan, benchmark

__all__ = [
    "COMPILES",
    "SCALING",
    "SIZES",
    "VARIANTS",
    "Plan",
    "Report",
    "Row",
    "Size",
    "SizeReport",
    "Spread",
    "benchmark",
    "describe_machine",
    "outcomes",
    "spread",
]
