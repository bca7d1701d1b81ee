"""Flags of the ``measure`` command: model, weights, images, and their preprocessing."""

from __future__ import annotations

import json
from argparse import ArgumentError
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from experiments.errors import UsageError
from experiments.measure.options import MeasureOptions
from experiments.models import MODELS, model_builder
from experiments.models.named import TORCHVISION, full_name
from experiments.study.config import parser_error, strict_parser
from experiments.training.run_context import choose_device
from experiments.vision import import_torchvision

USAGE = """python -m experiments measure --model=NAME --checkpoint=WEIGHTS --data=FOLDER [--key=value …]

Every measure, with its nulls, on a network that was trained elsewhere: a table, figures and a summary.

  --model=NAME          alexnet, or any other of the suite with its --model.* flags; resnet18, or any other classifier
                        of torchvision (torchvision:alexnet for its own)
  --checkpoint=WEIGHTS  a file that torch.save wrote (a state_dict, also a wrapped one), a .safetensors file, or the
                        name of weights that torchvision has, such as DEFAULT. No code in a file is run. The number of
                        classes is read from it, and the flags of a run of this suite from the file next to it.
  --data=FOLDER         images, in a folder for each class or in none; of train/ and val/ in it, val/ is measured"""


def help_text(flags: list[str]) -> str:
    """Return all flags, those of the model among them: AlexNet's where none is named."""
    named = any(flag.startswith("--model=") for flag in flags)
    name = model_name(flags) if named else "alexnet"
    return _parser(name, {}, published_weights(name).get("DEFAULT")).format_help()


def model_name(flags: list[str]) -> str:
    """Return the model that the flags name: one of the suite, or ``torchvision:…``.

    Raises:
        UsageError: they name none, or one that there is not; names the nearest.
    """
    names = [flag.removeprefix("--model=") for flag in flags if flag.startswith("--model=")]
    if "--model" in flags or not names or not names[-1]:
        raise UsageError("measure: --model needs a name, as in --model=alexnet or --model=resnet18")
    try:
        return full_name(names[-1])
    except UsageError as error:
        raise UsageError(f"--model={error}") from None


def published_weights(name: str) -> dict[str, Any]:
    """Return torchvision's weights for a model, by name, ``DEFAULT`` included; empty for a model of the suite."""
    if not name.startswith(TORCHVISION):
        return {}
    weights = import_torchvision().models.get_model_weights(name.removeprefix(TORCHVISION))
    return dict(weights.__members__)


def _parser(name: str, recorded: dict[str, Any], default: Any) -> ArgumentParser:
    parser = strict_parser("experiments measure")
    parser.usage = USAGE
    size = MODELS.get(name, 224) if default is None else default.transforms().crop_size[0]
    add = parser.add_argument
    add("--checkpoint", type=str, help="The weights.")
    add("--data", type=str, help="The folder of images.")
    add("--out", type=str, help="Folder for the tables and figures; by default measured/<model>-<checkpoint>.")
    add("--images", type=int, default=400, help="Images measured, evenly spaced over the folder; kept in memory.")
    add("--input_size", type=int, default=size, help="Height and width in pixels of the network's input.")
    add("--image_size", type=int, help="… of the image that it is the centre of; by default as the weights want it.")
    add("--colour", type=Literal["colour", "grey", "hue-scrambled"], default="colour", help="Colours of the images.")
    add(
        "--normalise",
        type=Literal["auto", "imagenet", "data"],
        default="auto",
        help="Mean and standard deviation of the pixels are ImageNet's, or those of the folder's (training) images; "
        "auto: as torchvision's weights of the model want it, and data for the suite's models.",
    )
    add("--seed", type=int, default=0, help="Of the untrained network.")
    add("--device", type=str, default="auto", help="auto: CUDA, then MPS, then the CPU.")
    parser.add_class_arguments(MeasureOptions, "measures", skip={"images"})
    if name in MODELS:
        skip: set[str | int] = {"classes", "input_size"}  # known from the checkpoint, and a flag above
        parser.add_function_arguments(model_builder(name), "model", skip=skip, as_group=False)
    known = vars(parser.get_defaults().as_flat())
    parser.set_defaults({key: value for key, value in recorded.items() if key in known})
    return parser


def parse(name: str, flags: list[str], default: Any) -> tuple[Namespace, dict[str, Any]]:
    """Read the flags.

    Args:
        name: name of the model.
        flags: as typed.
        default: torchvision's own weights of the model, which define the sizes of images; None if it has none.

    Returns:
        The flags given, with the arguments of the model under ``model`` (None for torchvision's), and what the run that
        left the checkpoint recorded, where it is one of this suite: it takes the place of defaults.

    Raises:
        UsageError: an unknown flag, a value that cannot be, no checkpoint, no images.
    """
    flags = [flag for flag in flags if not flag.startswith("--model=")]
    places = [flag.removeprefix("--checkpoint=") for flag in flags if flag.startswith("--checkpoint=")]
    recorded = _recorded(places[-1], name) if places else {}
    parser = _parser(name, recorded, default)
    try:
        parsed = parser.parse_args(flags)
        given = parser.instantiate(parsed)
    except ArgumentError as error:
        raise UsageError(f"measure: {parser_error(error, parser)}") from None
    except ValueError as error:
        raise UsageError(f"measure: {error}") from None
    for key, what in (("checkpoint", "a file, or the name of torchvision's weights"), ("data", "a folder of images")):
        if not given[key]:
            raise UsageError(f"measure: --{key} is missing: {what}")
    for key in ("images", "input_size", "image_size"):
        if given[key] is not None and given[key] < 1:
            raise UsageError(f"--{key}={given[key]}: must be at least 1")
    if given.image_size is None:
        preprocessing = default.transforms() if default is not None else None
        given.image_size = round(
            given.input_size * (preprocessing.resize_size[0] / preprocessing.crop_size[0] if preprocessing else 1)
        )
    if given.image_size < given.input_size:
        raise UsageError(f"--input_size={given.input_size}: must be at most --image_size={given.image_size}")
    given.model = parsed.get("model")
    return given, recorded


def _recorded(checkpoint: str, name: str) -> dict[str, Any]:
    """Return the flags to measure a run of this suite, from its ``config.json``; empty for other checkpoints."""
    try:
        config = json.loads(Path(checkpoint).expanduser().with_name("config.json").read_text(encoding="utf-8"))
        if config["model"]["name"] != name:
            return {}
        views = config["views"]
        model = {f"model.{key}": value for key, value in config["model"].items() if key != "name"}
        sizes = {"image_size": views["image_size"], "input_size": views["crop_size"]}
        return {**model, **sizes, "colour": views["colour"], "seed": config["seed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def given_device(name: str) -> torch.device:
    """Return the device that ``--device`` names on this machine.

    Raises:
        UsageError: there is none.
    """
    try:
        return choose_device(name)
    except UsageError as error:
        raise UsageError(str(error).replace("recipe.device", "--device")) from None
