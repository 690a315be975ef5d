"""The command ``evaluate``: a run judged on held-out data, in a card."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from pyro_vae import data as data_sets
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.files import check_output, write_json
from pyro_vae.cli import tables
from pyro_vae.cli.inspect import RunOptions
from pyro_vae.cli.options import Words, part
from pyro_vae.cli.progress import progress_bars, say
from pyro_vae.data import DataSet, Images
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.inference_data import save_netcdf, to_inference_data
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.runner import evaluate
from pyro_vae.program.call import x_alone
from pyro_vae.training.folder import Run

WITH_HOW = 120  # narrower terminals omit how a figure was computed; the card's file has it
SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class EvaluateOptions(EvaluationOptions, RunOptions):
    """Evaluate a run on held-out data: bounds, log p(x), gaps, diagnostics; resumes where it stopped.

    Args:
        data: other data of the same shape; the run's own by default.
        binarize: dynamic, threshold or none; as in training by default.
        split: test, validation or train.
        only: parts to compute, separated by commas, of bounds, importance, joint, annealing, sandwich, prior, hmc,
            gaps, latents, surgery, calibration, pictures, probe.
        skip: parts to leave out, separated by commas.
        json: write the card to this file, too.
        netcdf: write draws and weights to this file, for ArviZ.
    """

    data: str | None = None
    binarize: str | None = None
    split: str = "test"
    only: Words | None = None
    skip: Words = field(default_factory=Words)
    json: str | None = None
    netcdf: str | None = None

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        EvaluationOptions.__post_init__(self)
        self.parts(PARTS)
        lookup({name: name for name in SPLITS}, self.split, "split")


def evaluate_run(options: EvaluateOptions, console: Console) -> int:
    """Evaluate a run, print the card, and keep it in the run's folder."""
    for file in (options.json, options.netcdf):
        check_output(file)
    run, own, program, device = options.open()
    data = own if options.data is options.binarize is None else _other(options, run, own)
    held_out: Images = getattr(data, options.split)
    if options.netcdf is not None:
        x_alone(program, held_out)
    chosen = part(EvaluationOptions, options)
    if not run.config.vectorize_particles:
        chosen = replace(chosen, vectorize_particles=False)  # as it was trained
    about = {"data": f"{data.name}, {options.split}: {len(held_out)} images of {_shape(held_out)}"}
    folder = run.path / "evaluation"
    with progress_bars(console, "examples") as tick:
        card = evaluate(
            program,
            held_out,
            train=_for_probe(options, own),
            device=device,
            seed=options.seed,
            progress=tick,
            save=folder,
            about={**about, "checkpoint": options.checkpoint, "replicate": str(options.replicate)},
            **asdict(chosen),
        )
    for line in tables.card_head(card):
        say(console, line)
    console.print(tables.card_table(card, how=console.width >= WITH_HOW))
    for line in tables.card_notes(card):
        say(console, line)
    for path in [folder / _card_name(options, data), *([Path(options.json)] if options.json else [])]:
        write_json(path, card.as_dict())
        say(console, f"card      {path}")
    if options.netcdf is not None:
        found = to_inference_data(
            program,
            held_out,
            device=device,
            seed=options.seed,
            draws_at_once=options.draws_at_once,
            vectorize_particles=chosen.vectorize_particles,
            about=about,
        )
        save_netcdf(options.netcdf, found)
        for group, why in json.loads(found.attrs["left_out"]).items():
            say(console, f"left out  {group}: {why}")
        say(console, f"netCDF    {options.netcdf}")
    return 0


def _other(options: EvaluateOptions, run: Run, own: DataSet) -> DataSet:
    """Load the data that ``--data`` names, the run's by default; binarized as the run's own by default.

    Raises:
        InputError: images of another shape than the run's.
    """
    root = options.data_root or run.config.data_root
    as_published = own.train.binarize == "none" and own.train.is_binary  # then what is usual for the other set
    binarize = options.binarize or (None if as_published else own.train.binarize)
    data = data_sets.load(options.data or run.config.data, root, binarize=binarize, seed=run.config.seed)  # type: ignore[arg-type]
    if data.event_shape != own.event_shape:
        got = f"{_shape(data.test)} in {data.name}"
        raise InputError(f"images of {_shape(own.test)}, as the run was trained on", got, "data of that shape")
    return data


def _for_probe(options: EvaluateOptions, own: DataSet) -> Images | None:
    """Return the probe's training data; None where labels mean something else, or the same data are judged."""
    return own.train if options.data is None and options.split != "train" else None


def _card_name(options: EvaluateOptions, data: DataSet) -> str:
    """Return ``card.json`` for the defaults, else a name made of the options that differ."""
    words = [options.binarize or ""]
    words += [f"{name}{value}" for name, value in (("replicate", options.replicate), ("seed", options.seed)) if value]
    words += [",".join(options.only or []), f"without-{','.join(options.skip)}" if options.skip else ""]
    of = (options.checkpoint, options.split, options.data)
    if of == ("last", "test", None) and not any(words):
        return "card.json"
    words = [options.checkpoint, Path(data.name).stem, options.split, *words]
    stem = re.sub(r"[^\w.-]", "_", "-".join(word for word in words if word))
    return f"card-{stem}.json"


def _shape(images: Images) -> str:
    return "x".join(map(str, images.event_shape))
