"""Engines and peers side by side in one run: speed, memory, and a check that all compute the same maths."""

from pyro_vae.studies.benchmark.goals import outcomes
from pyro_vae.studies.benchmark.machine import Machine, describe_machine
from pyro_vae.studies.benchmark.records import Report, Row, SizeReport, Spread, spread
from pyro_vae.studies.benchmark.sizes import SIZES, Size
from pyro_vae.studies.benchmark.suite import COMPILES, SCALING, VARIANTS, Plan, benchmark

__all__ = [
    "COMPILES",
    "SCALING",
    "SIZES",
    "VARIANTS",
    "Machine",
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
