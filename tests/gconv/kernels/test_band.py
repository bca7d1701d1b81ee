"""The band kernel: its numbers (band_checks.py, on a GPU or in the interpreter) and the code compiled for Hopper."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from gconv import Partition
from gconv.kernels import band, runnable
from gconv.kernels.band import support
from gconv.kernels.geometry import Geometry

CHECKS = Path(__file__).with_name("band_checks.py")
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
numpy_fits = pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None
    and version("triton") < "3.7"
    and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 needs numpy below 2.4",
)
as_tuned = pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None and [int(x) for x in version("triton").split(".")[:2]] >= [3, 8],
    reason="the programs were written for the code that Triton 3.6 and 3.7 make; 3.8 makes more instructions",
)
uninterpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")

if torch.cuda.is_available():
    from band_checks import *  # noqa: F403
else:

    @with_triton
    @numpy_fits
    @pytest.mark.parametrize(
        ("which", "passed"),
        [("not slow", r"\b\d\d passed"), pytest.param("slow", r"\b[1-9] passed", marks=pytest.mark.slow)],
    )
    def test_every_check_passes_in_the_interpreter(which, passed):
        command = [sys.executable, "-m", "pytest", str(CHECKS), "-m", which, "-p", "no:cacheprovider"]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, cwd=CHECKS.parents[3], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(passed, done.stdout), done.stdout


def geometry(sizes, kernel=(3, 3)):
    cut = Partition(tuple(sizes))
    return Geometry(cut, cut, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


CORRELATIONS = ("correlate", "correlate_rows")


def launches(layer, dtype, monkeypatch, statistics=False, size=(8, 8), blocking=None):
    """Launches of the three ops, or of the forward pass that counts: (name, kernel, arguments, options) in order."""
    from gconv.kernels.band import programs

    blocking = blocking or band.configs(layer, dtype)[0]

    recorded = []

    class Recorder:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(programs, name)

        def __getitem__(self, grid):
            return lambda *arguments, **options: recorded.append((self.name, self.kernel, arguments, options))

    with monkeypatch.context() as patch:
        for name in ("gather", *CORRELATIONS, "weight_partials", "add_partials", "merge_statistics"):
            patch.setattr(programs, name, Recorder(name))
        x = torch.zeros(8, layer.in_groups.channels, *size, dtype=dtype)
        dy = torch.zeros(8, layer.out_groups.channels, *layer.output_size(size), dtype=dtype)
        weight = torch.zeros(layer.weight_shape, dtype=dtype)
        if statistics:
            band.conv2d_statistics(x, weight, None, layer, blocking=blocking)
            return recorded
        band.conv2d(x, weight, torch.zeros(dy.shape[1], dtype=dtype), layer, "relu", blocking=blocking)
        band.input_gradient(dy, weight, layer, size, blocking=blocking)
        band.weight_gradient(dy, x, layer, blocking=blocking)
    return recorded


POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}


def compiled(kernel, arguments, options, architecture=90):
    """The program, compiled knowing of the arguments that pointers are aligned."""
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
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def instructions(kernel, arguments, options):
    """Counts of the instructions that matter, compiled for sm_90."""
    program = compiled(kernel, arguments, options)
    ptx = program.asm["ptx"]
    copies = [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)", ptx)]
    return {
        "tensor core": len(re.findall(r"wgmma\.mma_async|\bmma\.sync", ptx)),
        "copies": Counter(copies),
        "narrow loads": len(re.findall(r"ld\.global\S*\.b16", ptx)),
        "wide stores": len(re.findall(r"st\.global\S*\.v4\.b32", ptx)),
        "shared": program.metadata.shared,
    }


@dataclass
class Machine:
    """The machine code of a program: its registers and the instructions of its innermost loop."""

    registers: int
    spilled: int
    loop: list[str]

    def count(self, name):
        return sum(name in instruction for instruction in self.loop)


def machine_code(kernel, arguments, options):
    """As ptxas makes it for sm_90, read by the disassembler that comes with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / tool).exists() for tool in ("cuobjdump", "nvdisasm")):
        pytest.skip("this Triton comes without a disassembler")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled(kernel, arguments, options).asm["cubin"])
        file.flush()
        used, text = (
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    labels, code, loops = {}, [], []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*);", line):
            code.append(instruction[1])
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                loops.append(code[labels[target[1]] :])
    registers, stack = (int(re.search(rf"{word}:(\d+)", used)[1]) for word in ("REG", "STACK"))
    return Machine(registers, stack, max((loop for loop in loops if any("MMA" in i for i in loop)), key=len))


@with_triton
@as_tuned
@uninterpreted
@pytest.mark.parametrize("sizes", [(128, 64, 32, 16, 16), (8,) * 8], ids=["log:5", "8 groups of 8"])
def test_aligned_layers_compile_to_tensor_cores_and_16_byte_copies(sizes, monkeypatch):
    main = [entry for entry in launches(geometry(sizes), torch.bfloat16, monkeypatch) if "gather" not in entry[0]]
    assert len([entry for entry in main if entry[0] in CORRELATIONS]) <= 4, "two launches for each of two ops"
    for name, *launch in main:
        if name == "add_partials":
            continue
        code = instructions(*launch)
        assert code["tensor core"] > 0, name
        assert set(code["copies"]) == {16}, name
        assert code["narrow loads"] <= 1, f"{name}: only the bias"
        assert name not in CORRELATIONS or code["wide stores"] > 0, name
        assert code["shared"] <= 99 * 1024, f"{name}: what every chip since Ampere has"


@with_triton
@uninterpreted
@pytest.mark.parametrize("allowed", [True, False], ids=["tf32 allowed", "tf32 forbidden"])
def test_fp32_uses_tensor_cores_only_where_torch_allows_tf32(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    for name, *launch in launches(geometry((8,) * 4), torch.float32, monkeypatch):
        if name in (*CORRELATIONS, "weight_partials"):
            code = instructions(*launch)
            assert (code["tensor core"] > 0) == allowed, name
            assert code["shared"] <= 99 * 1024, name


@with_triton
@uninterpreted
@pytest.mark.parametrize("sizes", [(128, 64, 32, 16, 16), (7, 3, 5)], ids=["log:5", "odd"])
def test_an_epilogue_that_counts_keeps_the_tensor_cores_and_copies(sizes, monkeypatch):
    plain = [entry for entry in launches(geometry(sizes), torch.bfloat16, monkeypatch) if entry[0] in CORRELATIONS]
    counting = launches(geometry(sizes), torch.bfloat16, monkeypatch, statistics=True)
    assert [name for name, *_ in counting].count("merge_statistics") == 1
    main = [entry for entry in counting if entry[0] in CORRELATIONS]
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
        if name in CORRELATIONS:
            assert instructions(*launch)["tensor core"] > 0


GROUPS_OF_8 = (8,) * 8


@with_triton
@as_tuned
@uninterpreted
def test_rows_that_share_what_they_read_take_a_third_of_the_instructions_and_half_of_the_bytes(monkeypatch):
    """For each position and kernel tap, of 64@32 in groups of 8: 1284 / 1536 before sizes were constants, now 340."""
    layer = geometry(GROUPS_OF_8)
    rows, single = (
        next(
            machine_code(*launch)
            for name, *launch in launches(layer, torch.bfloat16, monkeypatch, size=(32, 32), blocking=blocking)
            if name in CORRELATIONS
        )
        for blocking in (
            next(b for b in band.configs(layer, torch.bfloat16) if b.rows),
            next(b for b in band.configs(layer, torch.bfloat16) if not b.rows),
        )
    )
    done = 256 * 3 / 128  # positions × taps of a step of four rows, over those of 128 positions
    assert rows.spilled == single.spilled == 0 and rows.registers <= 128 and single.registers <= 96
    assert len(single.loop) <= 160, "it was 214"
    assert len(rows.loop) <= 340 and len(rows.loop) / done <= len(single.loop) / 2
    assert rows.count("LDGSTS") <= done * single.count("LDGSTS") / 2


@with_triton
@as_tuned
@uninterpreted
def test_the_weight_gradient_has_half_the_instructions_and_room_for_four_programs_on_a_multiprocessor(monkeypatch):
    """654 instructions and 94 registers before sizes were constants and counters carried."""
    launched = launches(geometry(GROUPS_OF_8), torch.bfloat16, monkeypatch, size=(32, 32))
    code = next(machine_code(*launch) for name, *launch in launched if name == "weight_partials")
    assert len(code.loop) <= 340
    assert code.spilled == 0 and code.registers <= 128, "65536 registers hold four programs of 128 threads"


@with_triton
@uninterpreted
@pytest.mark.parametrize(
    ("sizes", "dtype"), [((7, 3, 5), torch.bfloat16), ((101, 56), torch.bfloat16), ((7, 3, 5), torch.float32)], ids=str
)
def test_odd_channels_spill_no_registers(sizes, dtype, monkeypatch):
    """The weight gradient of 7, 3, 5 in bf16 had 4695 instructions in its loop and spilled."""
    for name, *launch in launches(geometry(sizes), dtype, monkeypatch):
        if name in (*CORRELATIONS, "weight_partials"):
            code = machine_code(*launch)
            assert code.spilled == 0 and code.registers < 255, name


@with_triton
@as_tuned
@uninterpreted
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)], ids=["rows", "single"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_launch_for_wide_and_narrow_groups_spills_no_registers_and_fits_any_device(dtype, kernel, monkeypatch):
    layer = geometry((64, 32, 16, 16), kernel)
    together = band.configs(layer, dtype)[-1]
    assert together.narrow == together.wide and together.rows == (kernel == (3, 3))
    found = launches(layer, dtype, monkeypatch, size=(32, 32), blocking=together)
    main = [launch for name, *launch in found if name in (*CORRELATIONS, "weight_partials")]
    assert len(main) == 3, "one for each op"
    for launch in main:
        code, shared = machine_code(*launch), compiled(*launch).metadata.shared
        assert code.spilled == 0 and code.registers <= 128, "room for four programs"
        assert shared <= min(99 * 1024, together.shared_bytes(dtype.itemsize))
        if dtype == torch.bfloat16:
            assert instructions(*launch)["tensor core"] > 0 and set(instructions(*launch)["copies"]) == {16}


AMPERE, HOPPER = (86, 99 * 1024), (90, 227 * 1024)  # and the bytes of shared memory that a program may have


@with_triton
@uninterpreted
@pytest.mark.parametrize(("architecture", "limit"), [AMPERE, HOPPER], ids=["sm_86", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("op", ["output", pytest.param("input gradient", marks=pytest.mark.slow)])
def test_blockings_that_a_device_is_offered_fit_its_shared_memory(architecture, limit, dtype, op, monkeypatch):
    """The largest two of each device, with tiles as wide as they come; a gradient takes what its output does."""
    layer = geometry((128, 128))
    monkeypatch.setattr(support, "_shared_memory", lambda device: limit)
    offered = band.configs(layer, dtype, torch.device("cuda"))
    assert len(offered) > 4
    for blocking in sorted(offered, key=lambda b: -b.shared_bytes(dtype.itemsize))[:2]:
        launched = [
            entry for entry in launches(layer, dtype, monkeypatch, blocking=blocking) if entry[0] in CORRELATIONS
        ]
        assert len(launched) == 2, "one of each op"
        shared = compiled(*launched[op == "input gradient"][1:], architecture).metadata.shared
        assert shared <= min(limit, blocking.shared_bytes(dtype.itemsize)), blocking


def test_blockings_beyond_a_devices_shared_memory_are_not_offered(monkeypatch):
    layer, device = geometry((128, 128)), torch.device("cuda")
    monkeypatch.setattr(support, "_shared_memory", lambda device: 99 * 1024)
    left = set(band.configs(layer, torch.bfloat16)) - set(band.configs(layer, torch.bfloat16, device))
    assert {(b.pixels, b.wide, b.stages) for b in left} == {(128, 128, 4), (64, 128, 4)}


@with_triton
@uninterpreted
def test_the_cpu_is_refused_without_the_interpreter():
    assert "TRITON_INTERPRET=1" in (band.refuses(geometry((2, 3)), torch.float32, "cpu") or "")


def test_it_asks_for_the_capability_of_the_tensors_device(monkeypatch):
    old_and_new = {0: (7, 5), 1: (9, 0)}
    monkeypatch.setattr(support, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: old_and_new[device.index])
    support._no_triton.cache_clear()
    assert "8.0, not 7.5" in (band.refuses(geometry((2, 3)), torch.float32, torch.device("cuda", 0)) or "")
    assert band.refuses(geometry((2, 3)), torch.float32, torch.device("cuda", 1)) is None
    support._no_triton.cache_clear()


@with_triton
def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "torch finds no device cuda" in (band.refuses(geometry((2, 3)), torch.float32, "cuda") or "")
    assert "band" not in runnable(geometry((2, 3)), torch.float32, "cuda")


def test_it_says_so_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda name: None)
    support._no_triton.cache_clear()
    assert "Triton, which is not installed" in (band.refuses(geometry((2, 3)), torch.float32, "cuda") or "")
    support._no_triton.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "device", "words"),
    [(torch.float64, "cuda", "float64"), (torch.complex64, "cuda", "complex64"), (torch.float32, "mps", "mps")],
    ids=str,
)
def test_it_refuses_what_it_cannot_compute_in_words(dtype, device, words):
    assert words in (band.refuses(geometry((2, 3)), dtype, device) or "")
