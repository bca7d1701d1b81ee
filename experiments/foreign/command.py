"""The ``measure`` command: every measure, with its nulls, on a network that was trained elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonargparse import Namespace
from torch import nn

from analysis.lesion import class_accuracy
from experiments.data.augment import Views
from experiments.data.datasets import Dataset
from experiments.errors import UsageError
from experiments.foreign.flags import given_device, model_name, parse, published_weights
from experiments.foreign.images import load_images, standardised, with_outputs
from experiments.foreign.weights import Checkpoint, read_checkpoint, trained_and_untrained
from experiments.measure.context import prepare
from experiments.measure.images import MeasuredImages
from experiments.measure.registry import measure_network
from experiments.measure.table import Item, Measured, Note, Value, gather, save_arrays, save_table
from experiments.models import MODELS, build_model
from experiments.models.named import TIMM, TORCHVISION, import_timm
from experiments.report import summary as report
from experiments.store.runs import file_name, provenance, write_json
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext, device_name
from experiments.vision import import_torchvision
from gconv.cost import count_cost
from gconv.wiring import trace_wiring

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its pixels, of 1
CLASS_MEASURES = ("test_accuracy", "lesion", "probe_class")  # need the classes of the network
OF_INITIALISATION = "correlation_with_initialisation"
LISTED = 4  # layers of one note in the summary
RECORD = "measured.json"  # record of the measurement; it marks a folder of this command


@dataclass(frozen=True, eq=False)
class MeasuredNetwork:
    """Network that is measured, and the networks that it is compared with.

    Attributes:
        trained, untrained: the network, and the same freshly initialised.
        began_so: whether the training is known to have begun from ``untrained``.
        outputs: number of classes of the network.
        published: torchvision's weights, whose transforms define the preprocessing, if any.
    """

    trained: nn.Module
    untrained: nn.Module
    began_so: bool
    outputs: int
    published: Any


def measure_checkpoint(flags: list[str]) -> None:
    """Measure a trained network, write table, notes, arrays and figures into a folder, and print the results.

    Args:
        flags: ``--model=resnet18``, ``--checkpoint=weights.pth``, ``--data=images``.

    Raises:
        UsageError: a flag or a file is invalid; no file is written then.
    """
    name = model_name(flags)
    published = published_weights(name)
    given, recorded = parse(name, flags, published.get("DEFAULT"))
    device = given_device(given.device)
    checkpoint = read_checkpoint(given.checkpoint, published)
    out = _output_folder(given.out or f"measured/{file_name(f'{name}-{checkpoint.name}'.replace(':', '-'))}")
    subject = _measured_network(name, given, recorded, checkpoint, published.get("DEFAULT"))
    dataset = load_images(Path(given.data).expanduser(), given.image_size, given.images)
    dataset, items = _images_for(subject, dataset, given.normalise)
    given.measures = replace(given.measures, images=len(dataset.test.labels))
    views = Views(given.image_size, given.input_size, colour=given.colour)
    run_context = RunContext.of(dataset, views, Recipe(precision="fp32", device=str(device)))
    if recorded:
        print(
            "its run recorded, where no flag says otherwise: "
            + " ".join(f"{key}={value}" for key, value in recorded.items())
        )
    print(f"measuring {name} on {_images(dataset)} …", flush=True)
    if dataset.classes:
        right, totals = class_accuracy(
            subject.trained.to(device), MeasuredImages(run_context, given.measures.images).labelled()
        )
        items.append(Value("test_accuracy", right.sum() / totals.sum(), "fraction"))
    try:
        context = prepare(
            subject.trained, subject.untrained, run_context, given.measures, bool(dataset.classes), subject.began_so
        )
        items += [*_without_training_values(measure_network(context), dataset), *_notes(subject, dataset)]
    except ValueError as error:
        raise UsageError(f"measure {name}: {error}") from None
    measured = gather(items, "measured", name.removeprefix(TORCHVISION), given.seed, context.groups)
    figures = _write(out, measured, _record(given, name, checkpoint, run_context))
    print(_summary(measured.table, measured.notes, f"{name}, {checkpoint.name}", dataset))
    print(f"\ntables:  {out}\nfigures: " + "\n         ".join(str(path) for path in figures if path.suffix == ".png"))


def _output_folder(place: str) -> Path:
    """Return the folder to write to.

    Raises:
        UsageError: the folder holds other files, or cannot be written to.
    """
    out = Path(place).expanduser()
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out={place}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UsageError(f"--out={place}: holds files of something else; name an empty folder or a new one")
    nearest = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"--out={place}: {nearest} cannot be written to")
    return out


def _measured_network(
    name: str, given: Namespace, recorded: dict[str, Any], checkpoint: Checkpoint, default: Any
) -> MeasuredNetwork:
    """Return the network with the weights of the checkpoint, and without.

    Raises:
        UsageError: no network has these arguments, the weights do not fit it, or it cannot be traced.
    """
    arguments = dict(vars(given.model)) if given.model is not None else {}

    def build(classes: int) -> nn.Module:
        if name in MODELS:
            return build_model(name, given.input_size, classes=classes, **arguments)
        if name.startswith(TIMM):
            return import_timm(name).create_model(name.removeprefix(TIMM), num_classes=classes)
        with warnings.catch_warnings():  # the Inceptions announce another initialisation
            warnings.simplefilter("ignore", FutureWarning)
            return _classifier(name.removeprefix(TORCHVISION), classes, checkpoint.published is not None)

    shape = (3, given.input_size, given.input_size)
    try:
        trained, untrained = trained_and_untrained(build, checkpoint, given.seed)
    except ValueError as error:
        flags = " ".join(f"--model.{key}={value}" for key, value in arguments.items())
        hint = f"it was built with {flags}, which must be those of its training" if flags else "is it of another model?"
        raise UsageError(f"--checkpoint={given.checkpoint}: does not fit {name}: {error}; {hint}") from None
    try:
        count_cost(trained, shape)
        trace_wiring(trained, shape)
    except ValueError as error:
        raise UsageError(f"measure {name}, --input_size={given.input_size}: {error}") from None
    with torch.no_grad():
        outputs = trained(torch.zeros(1, *shape)).shape[1]
    for model in (trained, untrained):  # a third less time on a CPU
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    began_so = bool(recorded) and given.seed == recorded["seed"]
    return MeasuredNetwork(trained, untrained, began_so, outputs, checkpoint.published or default)


def _images(dataset: Dataset) -> str:
    """Return the number of images in words, and of class folders where these matter."""
    folders = len(dataset.test.labels.unique()) if dataset.classes else 0
    counted = f" of {folders} class folder{'s' if folders > 1 else ''}" if folders else ""
    return f"{len(dataset.test.labels)} images{counted}"


def _classifier(name: str, classes: int, published: bool) -> nn.Module:
    models = import_torchvision().models
    if name in ("googlenet", "inception_v3"):  # torchvision's weights of these want inputs from -1 to 1
        return models.get_model(name, num_classes=classes, aux_logits=False, transform_input=published)
    return models.get_model(name, num_classes=classes)


def _images_for(subject: MeasuredNetwork, dataset: Dataset, normalise: str) -> tuple[Dataset, list[Item]]:
    """Return the images standardised for the network, labelled with its classes; or without classes, with notes."""
    published = subject.published
    if normalise == "imagenet":
        dataset = standardised(dataset, *IMAGENET)
    elif normalise == "auto" and published is not None:
        preprocessing = published.transforms()
        dataset = standardised(dataset, preprocessing.mean, preprocessing.std)
    known = with_outputs(dataset, subject.outputs, published.meta["categories"] if published is not None else [])
    if known is not None:
        return known, []
    reason = "the images are in no class folders"
    if dataset.classes:
        reason = f"the network tells {subject.outputs} classes, and the images are of {len(dataset.classes)} others"
    return replace(dataset, classes=()), [Note(measure, reason) for measure in CLASS_MEASURES]


def _without_training_values(items: Iterable[Item], dataset: Dataset) -> Iterator[Item]:
    """Leave out values on training images if the folder has none."""
    for item in items:
        of_training = isinstance(item, Value) and item.measure.startswith("training_")
        if not (of_training and _has_no_training_images(dataset)):
            yield item


def _notes(subject: MeasuredNetwork, dataset: Dataset) -> Iterator[Item]:
    """Yield notes on the values that are left out because the training is not known."""
    if not subject.began_so:
        yield Note(OF_INITIALISATION, "the initialisation that the training began from is not known")
    if _has_no_training_images(dataset):
        yield Note("training_…", "the folder has no train/ next to the measured images")


def _has_no_training_images(dataset: Dataset) -> bool:
    return dataset.train.pixels is dataset.test.pixels


def _record(given: Namespace, name: str, checkpoint: Checkpoint, run_context: RunContext) -> dict[str, Any]:
    """Return model, weights, images and options of the measurement, without paths of this machine."""
    weights, dataset = hashlib.sha256(), run_context.dataset
    for key, weight in sorted(checkpoint.weights.items()):
        weights.update(key.encode())
        weights.update(weight.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "model": {"name": name, **(vars(given.model) if given.model is not None else {})},
        "checkpoint": checkpoint.name,
        "weights_hash": weights.hexdigest()[:16],
        "data_hash": hashlib.sha256(dataset.test.pixels.cpu().numpy().tobytes()).hexdigest()[:16],
        "images": len(dataset.test.labels),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "views": asdict(run_context.views),
        "seed": given.seed,
        "measures": asdict(given.measures),
        **provenance(device_name(run_context.device)),
    }


def _write(out: Path, measured: Measured, record: dict[str, Any]) -> list[Path]:
    """Write all files to a temporary folder first, then move them; returns the figures."""
    fresh = out.resolve().parent / f".{out.resolve().name}.{uuid.uuid4().hex[:12]}"
    try:
        save_table(fresh / "measures.csv", measured.table)
        save_table(fresh / "notes.csv", measured.notes)
        save_arrays(fresh / "arrays.npz", measured.arrays)
        write_json(fresh / RECORD, record)
        arrays = {measured.table["variant"].iloc[0]: measured.arrays}
        drawn = report.draw_measured(measured.table, arrays, fresh / "figures")
        for stale in (out / "figures").glob("*.p[dn][fg]"):
            stale.unlink()
        for file in [file for file in fresh.rglob("*") if file.is_file()]:
            target = out / file.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [out / path.relative_to(fresh) for path in drawn]


def _summary(table: pd.DataFrame, notes: pd.DataFrame, title: str, dataset: Dataset) -> str:
    """Return the results in plain text: the network, the measures with their nulls, and the notes."""
    values = table[table["layer"] == ""].set_index("measure")["value"]
    lines = [f"\n{title}: {values['parameters']:,.0f} parameters, {values['macs']:,.0f} MACs an image"]
    if "test_accuracy" in values:
        lines.append(f"accuracy {values['test_accuracy']:.3f} on {len(dataset.test.labels)} images")
    lines.append("one network and one draw of its untrained null: values without intervals")
    results = report.summary(table[table["measure"] != "test_accuracy"])
    notes_text = ["Notes"]
    for note, of in notes.groupby("note", sort=False):
        measures, layers = (list(dict.fromkeys(of[column])) for column in ("measure", "layer"))
        where = [layer for layer in layers if layer]
        more = f" and {len(where) - LISTED} more" if len(where) > LISTED else ""
        notes_text.append(f"{', '.join(measures)}: {note}" + (f" ({', '.join(where[:LISTED])}{more})" if where else ""))
    parts = ["\n".join(lines), results, "\n".join(notes_text) if len(notes_text) > 1 else ""]
    return "\n\n".join(part for part in parts if part)
