"""The band kernel: its numbers (band_checks.py, on a GPU or in the interpreter) and the code compiled for Hopper."""

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from gconv import Partition
from gconv.geometry import Geometry
from gconv.kernels import band

CHECKS = Path(__file__).with_name("band_checks.py")
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
numpy_fits = pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None
    and version("triton") < "3.7"
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 needs numpy below 2.4",
)
uninterpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")

if torch.cuda.is_available():
    from band_checks import *  # noqa: F403
else:

    @with_triton
    @numpy_fits
    def test_every_check_passes_in_the_interpreter():
        command = [sys.executable, "-m", "pytest", str(CHECKS), "-p", "no:cacheprovider"]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=CHECKS.parents[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\b\d\d passed", done.stdout), done.stdout


def geometry(sizes, kernel=(3, 3)):
    cut = Partition(tuple(sizes))
    return Geometry(cut, cut, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


def launches(layer, dtype, monkeypatch, statistics=False):
    """What the three ops would launch, or the forward pass that counts: (name, kernel, arguments, options) in order."""
    from gconv.kernels import band_triton

    found = []

    class Recorder:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(band_triton, name)

        def __getitem__(self, grid):
            return lambda *arguments, **options: found.append((self.name, self.kernel, arguments, options))

    with monkeypatch.context() as patch:
        for name in ("gather", "correlate", "weight_partials", "add_partials", "merge_statistics"):
            patch.setattr(band_triton, name, Recorder(name))
        x = torch.zeros(8, layer.in_groups.channels, 8, 8, dtype=dtype)
        dy = torch.zeros(8, layer.out_groups.channels, 8, 8, dtype=dtype)
        weight = torch.zeros(layer.weight_shape, dtype=dtype)
        if statistics:
            band.conv2d_statistics(x, weight, None, layer)
            return found
        band.conv2d(x, weight, torch.zeros(dy.shape[1], dtype=dtype), layer, "relu")
        band.input_gradient(dy, weight, layer, (8, 8))
        band.weight_gradient(dy, x, layer)
    return found


POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}


def instructions(kernel, arguments, options):
    """Counts of the instructions that matter, compiled for sm_90 knowing of the arguments that pointers are aligned."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for number, (parameter, argument) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", argument
        elif isinstance(argument, torch.Tensor):
            signature[parameter.name] = POINTERS[argument.dtype]
            attributes[(number,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = compiled.asm["ptx"]
    copies = [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", ptx)]
    return {
        "tensor core": len(re.findall(r"wgmma\.mma_async|\bmma\.sync", ptx)),
        "copies": Counter(copies),
        "narrow loads": len(re.findall(r"ld\.global\S*\.b16", ptx)),
        "wide stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "shared": compiled.metadata.shared,
    }


@with_triton
@uninterpreted
@pytest.mark.parametrize("sizes", [(128, 64, 32, 16, 16), (8,) * 8], ids=["log:5", "8 groups of 8"])
def test_aligned_layers_compile_to_tensor_cores_and_16_byte_copies(sizes, monkeypatch):
    main = [entry for entry in launches(geometry(sizes), torch.bfloat16, monkeypatch) if "gather" not in entry[0]]
    assert len([entry for entry in main if entry[0] == "correlate"]) <= 4, "two launches for each of two ops"
    for name, *launch in main:
        if name == "add_partials":
            continue
        code = instructions(*launch)
        assert code["tensor core"] > 0, name
        assert set(code["copies"]) == {16}, name
        assert code["narrow loads"] <= 1, f"{name}: only the bias"
        assert name != "correlate" or code["wide stores"] > 0, name
        assert code["shared"] <= 99 * 1024, f"{name}: what every chip since Ampere has"


@with_triton
@uninterpreted
@pytest.mark.parametrize("allowed", [True, False], ids=["tf32 allowed", "tf32 forbidden"])
def test_fp32_uses_tensor_cores_only_where_torch_allows_tf32(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    for name, *launch in launches(geometry((8,) * 4), torch.float32, monkeypatch):
        if name in ("correlate", "weight_partials"):
            code = instructions(*launch)
            assert (code["tensor core"] > 0) == allowed, name
            assert code["shared"] <= 99 * 1024, name


@with_triton
@uninterpreted
@pytest.mark.parametrize("sizes", [(128, 64, 32, 16, 16), (7, 3, 5)], ids=["log:5", "odd"])
def test_an_epilogue_that_counts_keeps_the_tensor_cores_and_copies(sizes, monkeypatch):
    plain = [entry for entry in launches(geometry(sizes), torch.bfloat16, monkeypatch) if entry[0] == "correlate"]
    counting = launches(geometry(sizes), torch.bfloat16, monkeypatch, statistics=True)
    assert [name for name, *_ in counting].count("merge_statistics") == 1
    main = [entry for entry in counting if entry[0] == "correlate"]
    for (_, *launch), (_, *without) in zip(main, plain, strict=False):
        code, other = instructions(*launch), instructions(*without)
        assert code["tensor core"] == other["tensor core"] > 0
        assert code["copies"] == other["copies"]
        assert code["wide stores"] >= other["wide stores"]
        assert code["shared"] <= 99 * 1024
    merging = next(entry for entry in counting if entry[0] == "merge_statistics")
    assert instructions(*merging[1:])["shared"] <= 99 * 1024


@with_triton
@uninterpreted
def test_odd_channels_compile(monkeypatch):
    for name, *launch in launches(geometry((7, 3, 5)), torch.float16, monkeypatch):
        if name == "correlate":
            assert instructions(*launch)["tensor core"] > 0


@with_triton
@uninterpreted
def test_the_cpu_is_refused_without_the_interpreter():
    assert "TRITON_INTERPRET=1" in (band.refuses(geometry((2, 3)), torch.float32, "cpu") or "")


def test_it_says_so_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(band, "find_spec", lambda name: None)
    band._no_triton.cache_clear()
    assert "Triton, which is not installed" in (band.refuses(geometry((2, 3)), torch.float32, "cuda") or "")
    band._no_triton.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "device", "words"),
    [(torch.float64, "cuda", "float64"), (torch.complex64, "cuda", "complex64"), (torch.float32, "mps", "mps")],
    ids=str,
)
def test_it_refuses_what_it_cannot_compute_in_words(dtype, device, words):
    assert words in (band.refuses(geometry((2, 3)), dtype, device) or "")
