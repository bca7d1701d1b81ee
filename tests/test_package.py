"""The package as it is installed: what it needs, and what it brings."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import gconv
from run_make import run_make

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_THE_SUITE = ("torchvision", "scipy", "pandas", "sklearn", "skimage", "matplotlib", "jsonargparse", "yaml", "wandb")

# Refuses the modules of the suite, as where they are not installed.
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {OF_THE_SUITE}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(*arguments, folder, path=ROOT):
    """Run this interpreter in a folder with the packages of ``path``."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_operator_requires_torch_and_numpy_alone():
    names = {"".join(c for c in text if c not in "<>=,.0123456789") for text in PROJECT["dependencies"]}
    assert names == {"torch", "numpy"}


def test_the_operator_works_without_the_suite(tmp_path):
    code = (
        "import torch, gconv; y = gconv.GroupedConv2d(8, 8, 3, groups='log:3')(torch.ones(1, 8, 5, 5)); print(y.shape)"
    )
    ran = python("-c", BLOCKED + code, folder=tmp_path)
    assert ran.stdout.strip() == "torch.Size([1, 8, 3, 3])", ran.stderr


def test_a_command_without_the_suite_says_what_to_install(tmp_path):
    code = "import runpy; sys.argv = ['experiments', 'list']; runpy.run_module('experiments', run_name='__main__')"
    ran = python("-c", BLOCKED + code, folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == "error: yaml is not installed here: pip install 'grouped-convolution[suite]'\n"


def test_the_version_is_that_of_the_package():
    assert "version" in PROJECT["dynamic"]
    assert gconv.__version__.count(".") == 2


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder_and_leaves_nothing_behind(tmp_path):
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = tmp_path / "source"
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    wheel = ["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet"]
    built = python(*wheel, folder=source)
    if "No module named" in built.stderr:
        pytest.skip("pip or setuptools is not here")
    assert not built.returncode, built.stderr
    left = ["git", "ls-files", "-o", "--exclude-standard"]
    assert subprocess.run(left, cwd=source, capture_output=True, text=True).stdout == ""
    (file,) = source.glob("*.whl")
    packages, empty = tmp_path / "packages", tmp_path / "empty"
    zipfile.ZipFile(file).extractall(packages)
    empty.mkdir()
    for arguments, words in (
        (["list"], "quickstart"),
        (["status", "quickstart"], "quickstart: 12 runs: 0 done"),
        (["claims"], "not run"),
        (["sweep", "photos-baye"], "photos-bayes"),
        (["run", "quickstart", "--help"], "--recipe.lr"),
    ):
        ran = python("-m", "experiments", *arguments, folder=empty, path=packages)
        assert words in ran.stdout + ran.stderr, ran.stderr
    assert not list(empty.iterdir())


def test_make_with_the_name_of_a_folder_is_a_command_or_an_error():
    tree = subprocess.run(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    targets = [line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line]
    folders = [name for name in tree.stdout.split() if name not in targets and name[0] != "."]
    assert folders or tree.returncode, "experiments/ at least"
    for folder in folders:
        ran = run_make(folder)
        assert ran.returncode == 2, f"Makefile: name what `make {folder}` may mean: MEANT_{folder}"
        assert "did you mean `make " in ran.stderr


def test_make_bench_with_help_times_nothing():
    ran = run_make("-n", "bench", "ARGS=--help")
    started = [line for line in ran.stdout.splitlines() if "-m benchmarks" in line]
    assert [line.split("benchmarks.")[1] for line in started] == ["kernels --help"]
