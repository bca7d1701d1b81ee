"""A small study, to be trained and measured in seconds."""

from experiments.study.config import load_study

NAME = "quickstart"
SMALL = ["--recipe.epochs=1", "--recipe.batch_size=24", "--recipe.device=cpu", "--recipe.precision=fp32"]
SMALL += ["--data.image_size=16", "--data.crop_size=16", "--only=dense,groups-2", "--wandb=off"]
SMALL += ["--measures.images=8", "--measures.permutations=99", "--measures.draws=0", "--measures.lesion_images=0"]


def small(root, *flags):
    """Two variants with two seeds each."""
    return load_study(NAME, [*SMALL, "--seeds=2", f"--runs_root={root}", *flags])
