"""The command ``evaluate``: how good a run is on held-out data, in a card."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from pyro_vae import data as data_sets
from pyro_vae.base.errors import InputError, lookup
from pyro_vae.base.files import check_output, write_json
from pyro_vae.cli import tables
from pyro_vae.cli.inspect import opened
from pyro_vae.cli.progress import progress_bars, say
from pyro_vae.data import DataSet, Images
from pyro_vae.evaluation.card.table import PARTS
from pyro_vae.evaluation.inference_data import save_netcdf, to_inference_data
from pyro_vae.evaluation.options import EvaluationOptions
from pyro_vae.evaluation.runner import evaluate
from pyro_vae.training.folder import Run

FILE_WIDTH = 160  # of the table where the output is no terminal
WITH_HOW = 120  # narrower terminals get no room to say how; the card's file says it
SPLITS = ("test", "validation", "train")


def evaluate_run(options: Any, console: Console) -> int:
    """Judge a run, print the card, and keep it in the run's folder."""
    wanted = _wanted(options)
    lookup({name: name for name in SPLITS}, options.split, "split")
    for file in (options.json, options.netcdf):
        check_output(file)
    run, own, program, device = opened(options)
    data = own if options.data is options.binarize is None else _other(options, run, own)
    held_out: Images = getattr(data, options.split)
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
            **wanted,
        )
    for line in tables.card_head(card):
        say(console, line)
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    wide.print(tables.card_table(card, how=wide.width >= WITH_HOW))
    for line in tables.card_notes(card):
        say(console, line)
    for file in [folder / _card_name(options, data), *([Path(options.json)] if options.json else [])]:
        write_json(file, card.as_dict())
        say(console, f"card      {file}")
    if options.netcdf is not None:
        found = to_inference_data(program, held_out, device=device, seed=options.seed, about=about)
        save_netcdf(options.netcdf, found)
        say(console, f"netCDF    {options.netcdf}")
    return 0


def _wanted(options: Any) -> dict[str, Any]:
    """Return the options of the evaluation, parts as lists; refuses unknown parts before anything is loaded."""
    wanted = {name: options[name] for name in EvaluationOptions.__dataclass_fields__ if name not in ("only", "skip")}
    for name in ("only", "skip"):
        if options[name] is not None:
            wanted[name] = [part.strip() for part in options[name].split(",") if part.strip()]
    EvaluationOptions(**wanted).parts(PARTS)
    return wanted


def _other(options: Any, run: Run, own: DataSet) -> DataSet:
    """Load the data that ``--data`` names, the run's by default; binarized as the run's own unless said otherwise.

    Raises:
        InputError: images of another shape than the run's.
    """
    root = options.data_root or run.config.data_root
    as_published = own.train.binarize == "none" and own.train.is_binary  # then what is usual for the other set
    binarize = options.binarize or (None if as_published else own.train.binarize)
    data = data_sets.load(options.data or run.config.data, root, binarize=binarize, seed=run.config.seed)
    if data.event_shape != own.event_shape:
        got = f"{_shape(data.test)} in {data.name}"
        raise InputError(f"images of {_shape(own.test)}, as the run was trained on", got, "data of that shape")
    return data


def _for_probe(options: Any, own: DataSet) -> Images | None:
    """Return the data that the probe learns from; none where labels are other ones, or the data judged are the same."""
    return own.train if options.data is None and options.split != "train" else None


def _card_name(options: Any, data: DataSet) -> str:
    """``card.json`` for the run's own test data and last checkpoint, all parts; else a name that says what it is of."""
    usual = {"checkpoint": "last", "split": "test", "data": None, "binarize": None, "replicate": 0, "seed": 0}
    usual |= {"only": None, "skip": None}
    given = {name: getattr(options, name) for name in usual}
    if given == usual:
        return "card.json"
    words = [options.checkpoint, Path(data.name).stem, options.split, options.binarize or ""]
    words += [f"{name}{given[name]}" for name in ("replicate", "seed") if given[name] != usual[name]]
    words += [options.only or "", f"without-{options.skip}" if options.skip else ""]
    stem = re.sub(r"[^\w.-]", "_", "-".join(word for word in words if word))
    return f"card-{stem}.json"


def _shape(images: Images) -> str:
    return "x".join(map(str, images.event_shape))
