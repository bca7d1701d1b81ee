"""A kernel is its file and one line in ``KERNELS``: CONTRIBUTING's recipe, followed in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import gconv
from gconv import GroupedConv2d
from gconv.kernels import CANDIDATES, KERNELS, OPS, different, find, runnable

PACKAGE = Path(gconv.__file__).parent
PROGRAM = """
import torch, gconv
from gconv.kernels import CANDIDATES, DIFFERENTIABLE, runnable
layer, x = gconv.GroupedConv2d(8, 8, 3, groups="log:3"), torch.randn(2, 8, 5, 5)
with gconv.forced_kernel("loop"):
    expected = layer(x)
with gconv.forced_kernel("copied_loop"):
    torch.testing.assert_close(layer(x), expected)
layer(x).sum().backward()
print("copied_loop" in CANDIDATES, "copied_loop" in DIFFERENTIABLE,
      "copied_loop" in runnable(layer.geometry, torch.float32, "cpu"))
"""


def test_a_kernel_is_added_by_its_file_and_one_line(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "gconv")  # and what is compiled of it
    shutil.copy(copy / "kernels" / "loop.py", copy / "kernels" / "copied_loop.py")
    registry = copy / "kernels" / "__init__.py"
    line = '        Kernel("tails"),\n'
    text = registry.read_text(encoding="utf-8")
    assert text.count(line) == 1
    registry.write_text(text.replace(line, f'{line}        Kernel("copied_loop"),\n'), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "True"]


def test_every_registered_kernel_has_the_four_functions():
    for name in KERNELS:
        assert all(callable(getattr(find(name), function)) for function in (*OPS, "refuses")), name
    assert "reference" not in CANDIDATES


def test_kernels_that_make_the_same_calls_count_once():
    def of(groups: object) -> list[str]:
        geometry = GroupedConv2d(64, 64, 3, groups=groups, device="meta").geometry
        return different(geometry, runnable(geometry, torch.float32, "cpu"))

    assert of(1) == ["native"]
    assert of(4) == ["native", "loop", "masked"]
    assert of("log:3") == ["loop", "merged", "packed", "masked"]  # nested makes the calls of merged
    assert "merged" not in of("36,20,8")  # no neighbours are equal
    assert {"loop", "merged"} <= set(of([1, 2] * 21 + [1]))  # which are sorted first
