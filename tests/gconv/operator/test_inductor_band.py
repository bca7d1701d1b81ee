"""The band kernel in code that Inductor generates for CUDA, which is read, not run: without a GPU one is pretended."""

import ast
import copy
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.utils import get_code
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _triton

from gconv import GroupedConv2d, forced_kernel
from gconv.kernels.band import correlate, launch, support, tables, weights
from gconv.operator import dispatch, inductor, library

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(not inductor.register(), reason="this torch inlines no custom ops"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

H100 = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=2**16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=227 * 1024,
    warp_size=32,
)


class Driver:
    """Triton's driver of a device on which nothing is launched. Programs are compiled as for any other."""

    launcher_cls = staticmethod(lambda source, metadata: None)

    def __init__(self, shared_memory):
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": shared_memory},
            load_binary=lambda *program: (None, None, 0, 0, 1024),
        )

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def on_the_cpu(build):
    """Have tables that kernels keep built on the CPU."""
    return lambda *given: build(*(torch.device("cpu") if isinstance(part, torch.device) else part for part in given))


@pytest.fixture
def device(monkeypatch):
    """A CUDA device: the first one, or an H100 that is pretended."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        yield
        return
    from triton.compiler.compiler import max_shared_mem
    from triton.runtime import driver

    for interface in (CudaInterface, CudaInterface.Worker):
        monkeypatch.setattr(interface, "get_device_properties", staticmethod(lambda *device: H100))
        monkeypatch.setattr(interface, "current_device", staticmethod(lambda: 0))
    for name, answer in (("is_available", True), ("is_bf16_supported", True), ("device_count", 1)):
        monkeypatch.setattr(CudaInterface, name, staticmethod(lambda *given, answer=answer, **options: answer))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *device: H100)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    # The method of a tensor asks for the device, the op does not.
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t, **layout: torch.ops.aten.contiguous.default(t, **layout))
    for passes in (joint_graph, post_grad):  # these make tensors on the device
        monkeypatch.setattr(passes, "lazy_init", lambda *device: None)
    for module in (correlate, weights):
        monkeypatch.setattr(module, "on", lambda device: nullcontext())
        monkeypatch.setattr(module, "tables", on_the_cpu(tables.tables))
    monkeypatch.setattr(correlate, "phases", on_the_cpu(tables.phases))
    forget = (_triton.has_triton, max_shared_mem, support._no_triton, support._shared_memory, weights._programs)
    for cache in forget:
        cache.cache_clear()
    monkeypatch.setattr(driver, "_active", Driver(227 * 1024))
    yield
    monkeypatch.undo()
    for cache in forget:
        cache.cache_clear()
    support.failures.clear()
    dispatch.forget()


@pytest.fixture
def built(monkeypatch):
    """Names of the Triton programs that were to be built; they are not."""
    names = []
    monkeypatch.setattr(launch, "build", lambda program, *rest, **options: names.append(program.__name__))
    return names


def code_of(forward, *shapes, parameters=torch.bfloat16, kernel="band"):
    """Return the code that Inductor makes of a function of images in bf16 and channels_last, and of parameters.

    One kernel is forced; by None the operator chooses.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        dtypes = [torch.bfloat16 if len(shape) == 4 else parameters for shape in shapes]
        given = [torch.empty(shape, device="cuda", dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        given = [part.to(memory_format=torch.channels_last) if part.dim() == 4 else part for part in given]

    def run():
        with mode:
            compile_fx(fx.symbolic_trace(forward), given)

    # Folding would compute on the device.
    settings = {"force_disable_caches": True, "compile_threads": 1, "joint_graph_constant_folding": False}
    with config.patch(settings), forced_kernel(kernel) if kernel else nullcontext():
        return get_code(run)[0]


def calls(code):
    """Return kernels and library calls in the order of the program, without the numbers of Inductor's."""
    name = r"(?:\w+ = )?(\w+?)(?:_\d+)?\.run\(|((?:extern_kernels|torch\.ops)\.[\w.]+)"
    names = re.findall(rf"^\s*{name}", code[code.index("def call(") :], re.MULTILINE)
    return [kernel or call for kernel, call in names]


def constants_of(program, code):
    """Return the constants of each copy of a Triton program in the code."""
    texts = re.findall(rf"async_compile\.triton\('{program}', .*?'constants': (\{{.*?\}})", code, re.DOTALL)
    return [ast.literal_eval(text) for text in texts]


LAYER = GroupedConv2d(64, 64, 3, padding=1, groups="log:3")
NUMBERS = library._numbers(LAYER.geometry)
IMAGE, WEIGHT, BIAS = (8, 64, 16, 16), tuple(LAYER.weight.shape), (64,)
ops = torch.ops.gconv


def with_relu(x, weight, bias):
    return ops.conv2d(x, weight, bias, *NUMBERS, "relu") * 2


@pytest.mark.usefixtures("device", "built")
def test_programs_are_called_by_the_compiled_one_and_norm_and_relu_fuse_between_them():
    def forward(x, weight, bias):
        y = ops.conv2d(x, weight, bias, *NUMBERS, "none")
        y = F.batch_norm(y, None, None, bias, bias, training=True).relu()
        return ops.conv2d(y, weight, None, *NUMBERS, "none") + x

    called = calls(code_of(forward, IMAGE, WEIGHT, BIAS))
    assert [name for name in called if "triton_" not in name] == ["gather", "correlate_rows"] * 2
    between, last = called[2:-3], called[-1]
    assert "batch_norm" in between[-1] and "relu" in between[-1], "one kernel normalises and applies the ReLU"
    assert all("batch_norm" in name for name in between) and len(between) <= 3, "the others count the statistics"
    assert last == "triton_poi_fused_add", "nothing fuses into a Triton program of ours"


@pytest.mark.usefixtures("device", "built")
def test_the_epilogue_is_in_the_program():
    code = code_of(with_relu, IMAGE, WEIGHT, BIAS)
    assert calls(code) == ["gather", "correlate_rows", "triton_poi_fused_mul"]
    (constants,) = constants_of("correlate_rows", code)
    assert constants["RELU"] and constants["HAS_BIAS"] and not constants["STATISTICS"]


@pytest.mark.usefixtures("device", "built")
def test_statistics_are_counted_by_the_program_and_one_kernel_normalises():
    def forward(x, weight, bias):
        y, mean, var = ops.conv2d_statistics(x, weight, bias, *NUMBERS)
        return ((y - mean.view(-1, 1, 1)) * torch.rsqrt(var.view(-1, 1, 1) + 1e-5)).relu() + x

    code = code_of(forward, IMAGE, WEIGHT, BIAS)
    called = calls(code)
    assert called[:3] == ["gather", "correlate_rows", "merge_statistics"]
    assert constants_of("correlate_rows", code)[0]["STATISTICS"]
    assert all(word in called[-1] for word in ("rsqrt", "relu", "add"))
    assert len(called) == 5, "between them the variance of the 64 channels"


@pytest.mark.usefixtures("device", "built")
def test_both_gradients_read_one_tensor_that_the_derivative_of_the_relu_wrote():
    def backward(dy, y, x, weight):
        dy = torch.ops.aten.threshold_backward(dy, y, 0)
        return ops.input_gradient(dy, weight, *NUMBERS, IMAGE[2:]), ops.weight_gradient(dy, x, *NUMBERS)

    code = code_of(backward, IMAGE, IMAGE, IMAGE, WEIGHT)
    called = calls(code)
    assert "threshold_backward" in called[0]
    assert called[1:] == ["gather", "correlate_rows", "weight_partials", "add_partials"]
    images = re.findall(r"(\w+) = empty_strided_cuda\(\(8, 64, 16, 16\)", code)
    assert len(images) == 2, "the derivative and the gradient of the input"


@pytest.mark.usefixtures("device", "built")
def test_casts_of_mixed_precision_launch_nothing():
    def forward(x, weight, bias):
        y = ops.conv2d(x, weight.bfloat16(), bias.bfloat16(), *NUMBERS, "none")
        return ops.conv2d_statistics(y, weight.bfloat16(), bias.bfloat16(), *NUMBERS)[0]

    def backward(dy, x, weight):
        dx = ops.input_gradient(dy, weight.bfloat16(), *NUMBERS, IMAGE[2:])
        return dx, ops.weight_gradient(dy, x, *NUMBERS).float()

    called = calls(code_of(forward, IMAGE, WEIGHT, BIAS, parameters=torch.float32))
    assert called[:4] == ["gather", "correlate_rows"] * 2 and not any("_to_copy" in name for name in called)
    code = code_of(backward, IMAGE, IMAGE, WEIGHT, parameters=torch.float32)
    assert calls(code) == ["gather", "correlate_rows", "weight_partials", "add_partials"]
    assert re.search(r"empty_strided_cuda\(\(1536, 3, 3\), \(9, 3, 1\), torch\.float32\)", code)


@pytest.mark.usefixtures("device", "built")
def test_tables_are_constants_of_the_program_and_nothing_copies_them():
    code = code_of(with_relu, IMAGE, WEIGHT, BIAS)
    launches = re.findall(r"^\s*(?:gather|correlate)\w*\.run\((.*)\)", code, re.MULTILINE)
    assert [launch.count("_tensor_constant") for launch in launches] == [1, 1]


@pytest.mark.usefixtures("device", "built")
def test_an_exported_program_gets_the_kernel_of_the_device_that_compiles_it(monkeypatch):
    """Exported on a CPU for the band kernel, which cannot run there."""
    with forced_kernel("band"):
        program = torch.export.export(copy.deepcopy(LAYER).bfloat16().eval(), (torch.randn(IMAGE).bfloat16(),))
    given = program.graph_module, WEIGHT, BIAS, IMAGE
    assert calls(code_of(*given)) == ["gather", "correlate_rows"]
    chosen, candidates = [], inductor.candidates
    monkeypatch.setattr(inductor, "candidates", lambda *case: chosen.append(candidates(*case)) or ())
    code_of(*given, kernel=None)
    assert chosen == [("packed",)], "by the rule for a GPU without measured times"


@pytest.mark.usefixtures("device")
def test_a_program_that_cannot_be_built_makes_way_for_the_next_blocking_then_for_the_next_kernel(monkeypatch):
    from triton.runtime.errors import OutOfResources

    tried = []

    def fail(program, *rest, **options):
        tried.append(program.__name__)
        if program.__name__ == "correlate_rows" or len(tried) > 6:
            raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(launch, "build", fail)
    assert calls(code_of(with_relu, IMAGE, WEIGHT, BIAS)) == ["gather", "correlate", "triton_poi_fused_mul"]
    assert tried == ["gather", "correlate_rows"] * 2 + ["gather", "correlate"]
    monkeypatch.setattr(support, "kernel_for", lambda *case: SimpleNamespace(conv2d=lambda x, *rest: x.relu()))
    said = r"kernel 'band' for 64 -> 64 channels.*Triton cannot build it.*another is used"
    with pytest.warns(UserWarning, match=said):
        assert calls(code_of(with_relu, IMAGE, WEIGHT, BIAS)) == ["triton_poi_fused_conv2d_mul"]


@pytest.mark.usefixtures("device")
def test_the_next_kernel_gets_parameters_in_the_dtype_of_mixed_precision(monkeypatch):
    from triton.errors import TritonError

    def fail(program, *rest, **options):
        raise TritonError("no")

    dtypes = []

    def next_kernel(x, weight, bias, *rest):
        dtypes.extend(part.dtype for part in (x, weight, bias))
        return x.relu()

    monkeypatch.setattr(launch, "build", fail)
    monkeypatch.setattr(support, "kernel_for", lambda *case: SimpleNamespace(conv2d=next_kernel))
    code_of(
        lambda x, weight, bias: ops.conv2d(x, weight.bfloat16(), bias.bfloat16(), *NUMBERS, "relu"),
        *(IMAGE, WEIGHT, BIAS),
        parameters=torch.float32,
    )
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the driver is pretended")
@pytest.mark.usefixtures("device")
def test_building_compiles_for_the_device_and_minds_its_memory(monkeypatch):
    from triton.compiler.compiler import max_shared_mem
    from triton.runtime import driver
    from triton.runtime.errors import OutOfResources

    from gconv.kernels.band import programs

    bf16, i32 = torch.bfloat16, torch.int32
    given = bf16, i32, bf16, 4096, 1024
    launch.build(programs.gather, (4,), *given, num_warps=launch.WARPS)
    max_shared_mem.cache_clear()
    monkeypatch.setattr(driver, "_active", Driver(shared_memory=-1))
    with pytest.raises(OutOfResources, match="shared memory"):
        launch.build(programs.gather, (4,), *given, num_warps=2)
