"""Choice of the kernel of a layer: tables on disk, the choice from them, the rule without them, the explanation."""

import multiprocessing
import re
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gconv import GroupedConv2d, explain, explanation, forced_kernel
from gconv.kernels import CANDIDATES, OPS, choose, machine, table
from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import Machine, this_machine
from gconv.kernels.table import Kind, TableError
from gconv.operator import dispatch
from gconv.partition import Partition

CPU = torch.device("cpu")
LOG = Geometry(Partition.of("log:4", 64), Partition.of("log:4", 64), (3, 3), padding=(1, 1))
UNIFORM = Geometry(Partition.of(8, 64), Partition.of(8, 64), (3, 3), padding=(1, 1))
BITS = choose.pixel_bits(64, 32, 32)


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """Use no table except the one that the test writes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "none")
    dispatch.forget()
    yield table.own_path(this_machine(CPU))
    monkeypatch.undo()
    dispatch.forget()


def kind_of(op, geometry=LOG, dtype=torch.float32, bits=BITS, channels_last=True):
    return Kind.of(op, geometry, dtype, channels_last, bits)


def names(geometry=LOG, dtype=torch.float32, bits=BITS, channels_last=True):
    return tuple(choose.choose(op, geometry, dtype, CPU, channels_last, bits).kernel for op in OPS)


kinds = st.builds(
    Kind,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    layout=st.sampled_from(["channels_last", "contiguous"]),
    op=st.sampled_from(OPS),
    cut=st.sampled_from(["uniform", "uneven"]),
    kernel=st.sampled_from(["1x1", "KxK"]),
    stride=st.integers(1, 2),
    **dict.fromkeys(("channels", "widest", "narrowest", "groups", "pixels"), st.integers(0, 14)),
)
times = st.dictionaries(st.sampled_from([*CANDIDATES, "dense"]), st.floats(1e-7, 10), min_size=1)


machines = st.builds(
    Machine,
    device=st.sampled_from(["AMD EPYC", "Intel(R) Xeon(R) Processor @ 2.50GHz", "A; family B"]),
    family=st.sampled_from(["cpu-avx512-bf16", "cuda-sm90"]),
    torch=st.just("2.13.0+cpu"),
    threads=st.integers(0, 64),
)


@settings(max_examples=30)
@given(machines, st.dictionaries(kinds, times, max_size=8), st.dictionaries(kinds, times, max_size=3))
def test_a_table_reads_back_as_written_and_extends(tmp_path_factory, made_on, first, second):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("table") / "deep"))
        table.write(table.own_path(made_on), made_on, first)
        table.extend(made_on, second.items())
        named, back = table.read(table.own_path(made_on))
    assert named == made_on
    assert back.keys() == first.keys() | second.keys()
    for kind, seconds in (first | second).items():
        assert back[kind] == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize("path", sorted(table.SHIPPED.glob("*.csv")), ids=lambda path: path.stem)
def test_shipped_tables_can_be_read_and_name_kernels_of_their_family(path):
    made_on, times = table.read(path)
    assert table.shipped_path(made_on).name == path.name
    for kind, seconds in times.items():
        assert set(seconds) <= {*CANDIDATES, "dense", *(["apart"] if kind.op == "step" else [])}


def test_the_fastest_measured_kernel_is_chosen_for_each_op(own_table):
    fastest = dict(zip(OPS, ("masked", "nested", "packed"), strict=True))
    rows = {kind_of(op): {"loop": 2.0, "native": 0.1, "dense": 0.1, fastest[op]: 1.0} for op in OPS}
    table.write(own_table, this_machine(CPU), rows)
    dispatch.forget()
    assert names() == ("masked", "nested", "packed")  # neither native, which cannot, nor dense, which is no kernel
    assert names(channels_last=False) == names(bits=0)  # another layout, an unknown size: the rule


@pytest.mark.parametrize(
    ("step", "together"),
    [
        ({"loop": 1.00, "packed": 1.10, "apart": 1.20, "dense": 0.1}, "loop"),
        ({"loop": 1.02, "packed": 1.10, "apart": 1.00}, "loop"),  # as fast, and simpler
        ({"loop": 1.10, "packed": 1.20, "apart": 1.00}, None),
        ({"widened": 1.00, "apart": 1.00, "packed": 3.00}, None),
        ({"native": 0.50, "merged": 1.00}, "merged"),  # native cannot
        ({"packed": 0.50, "merged": 1.00}, None),  # torch would let an infinite gradient cross its groups
        ({}, None),  # no step is measured, and the ops differ
    ],
    ids=["loop", "alike", "apart", "widened", "uneven", "zeros", "silent"],
)
def test_one_kernel_computes_a_step_where_that_is_as_fast_as_three(own_table, step, together):
    rows = {kind_of(op): {"loop": 1.0 + i % 2, "packed": 1.5} for i, op in enumerate(OPS)}
    table.write(own_table, this_machine(CPU), rows | ({kind_of("step"): step} if step else {}))
    dispatch.forget()
    assert choose.together(LOG, torch.float32, CPU, True, BITS) == together
    assert names() == ("loop", "packed", "loop")


def test_a_measured_layer_stands_in_for_near_sizes_and_not_for_far_ones(own_table):
    table.write(own_table, this_machine(CPU), {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS})
    dispatch.forget()
    near = choose.pixel_bits(32, 32, 32)
    assert names(bits=near) == ("masked",) * 3
    assert "1 step away" in choose.choose("conv2d", LOG, torch.float32, CPU, True, BITS - 2).reason
    assert names(bits=choose.pixel_bits(1, 4, 4)) != ("masked",) * 3
    many = Geometry(Partition((32, *[1] * 32)), Partition((32, *[1] * 32)), (3, 3), padding=(1, 1))
    assert names(many) != ("masked",) * 3  # as wide a group, but many calls for a loop
    assert names(replace(LOG, kernel_size=(1, 1), padding=(0, 0))) != ("masked",) * 3
    assert names(replace(LOG, stride=(2, 2))) != ("masked",) * 3


def test_the_users_table_wins_over_the_shipped_one(own_table, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(table, "SHIPPED", shipped)
    elsewhere = replace(this_machine(CPU), device="another of the family", torch="1.0")
    table.write(table.shipped_path(elsewhere), elsewhere, {kind_of(op): {"loop": 1.0, "masked": 2.0} for op in OPS})
    dispatch.forget()
    assert names() == ("loop",) * 3
    table.write(own_table, this_machine(CPU), {kind_of(op): {"loop": 2.0, "masked": 1.0} for op in OPS})
    dispatch.forget()
    assert names() == ("masked",) * 3
    own_table.unlink()
    dispatch.forget()
    assert names() == ("loop",) * 3


def test_a_table_made_elsewhere_is_ignored(own_table, tmp_path, monkeypatch):
    """By another number of threads, on another family; for a file of the user's own: on any other machine."""
    here = this_machine(CPU)
    times = {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS}
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "shipped")
    others = [replace(here, threads=here.threads + 1), replace(here, family="cpu-avx9")]
    for other in others:  # files of their own, that nobody reads here
        table.write(table.own_path(other), other, times)
        table.write(table.shipped_path(other), other, times)
    dispatch.forget()
    assert "no such layer is measured" in choose.choose("conv2d", LOG, torch.float32, CPU, True, BITS).reason
    for other in (*others, replace(here, device="another"), replace(here, torch="1.0")):  # copied over the own one
        table.write(own_table, other, times)
        dispatch.forget()
        with pytest.warns(UserWarning, match=r"is ignored: it was made on .*, and this is "):
            assert names() != ("masked",) * 3
    table.extend(here, [(kind_of("conv2d"), {"loop": 1.0})])
    assert table.own(here) == {kind_of("conv2d"): {"loop": 1.0}}


def test_the_number_of_threads_counts_at_once(own_table):
    threads = torch.get_num_threads()
    table.write(own_table, this_machine(CPU), {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS})
    dispatch.forget()
    assert names() == ("masked",) * 3
    try:
        torch.set_num_threads(threads + 1)
        assert names() != ("masked",) * 3
    finally:
        torch.set_num_threads(threads)
    assert names() == ("masked",) * 3


def test_a_pinned_table_alone_speaks(own_table):
    table.write(own_table, this_machine(CPU), {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS})
    dispatch.forget()
    with table.pinned({kind_of(op): {"masked": 2.0, "loop": 1.0} for op in OPS}):
        dispatch.forget()
        assert names() == ("loop",) * 3
    dispatch.forget()
    assert names() == ("masked",) * 3


def test_what_was_chosen_by_a_table_of_a_block_is_forgotten_also_when_the_block_fails(own_table):
    table.write(own_table, this_machine(CPU), {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS})
    with pytest.raises(KeyboardInterrupt), choose.chosen_by({kind_of(op): {"masked": 2.0, "loop": 1.0} for op in OPS}):
        assert names() == ("loop",) * 3
        raise KeyboardInterrupt
    assert names() == ("masked",) * 3


@pytest.mark.parametrize(
    ("limit", "family", "bf16", "matrix"),
    [
        ("", "amx", True, True),
        ("ALL", "amx", True, True),
        ("avx512_core_bf16", "avx512-bf16", True, False),
        ("AVX512_CORE_AMX", "amx", True, True),
        ("AVX512_CORE_VNNI", "avx512", False, False),
        ("AVX2", "avx2", False, False),
    ],
)
def test_the_family_is_that_of_the_instructions_that_may_be_used(monkeypatch, limit, family, bf16, matrix):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for units in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, units, lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.device_family(CPU) == f"cpu-{family}"
    assert (machine.computes(torch.bfloat16), machine.has_matrix_units()) == (bf16, matrix)


HERE = f"device AMD EPYC; family cpu-avx512; torch {torch.__version__}; threads 2"
HEAD = f"{table.FORMAT_LINE}; {HERE}\n"
COLUMNS = "dtype,layout,op,cut,kernel,stride,channels,widest,narrowest,groups,pixels,computed_by,seconds\n"
ROW = "float32,channels_last,conv2d,uneven,KxK,1,6,5,3,2,8,loop,"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("family,dtype\n", "begins with"),
        ("# gconv kernel table 1; torch 2.13.0\n", "begins with '# gconv kernel table 1"),
        (f"{table.FORMAT_LINE}; torch 1.0\n{COLUMNS}", "does not name device"),
        (f"{HEAD}family,seconds\n", "columns"),
        (f"{HEAD}{COLUMNS}{ROW}fast\n", "line 3"),
        (f"{HEAD}{COLUMNS}{ROW}nan\n", "line 3"),
        (f"{HEAD}{COLUMNS}{ROW}1.0\n{ROW[:-9]}\n", "line 4"),
        (b"\xff\xfe\x00", "no text"),
    ],
    ids=["no head", "old format", "no machine", "columns", "word", "nan", "cut off", "binary"],
)
def test_a_file_that_cannot_be_used_warns_once_and_is_rebuilt_on_request(own_table, text, says):
    own_table.parent.mkdir(parents=True)
    own_table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TableError, match=says):
        table.read(own_table)
    layer, x = GroupedConv2d(16, 16, 3, groups="log:3"), torch.randn(2, 16, 8, 8)
    with pytest.warns(UserWarning, match=f"(?s){re.escape(own_table.name)}.*{says}.*make bench-kernels"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        GroupedConv2d(16, 16, 3, groups="log:4")(x)
    table.extend(this_machine(CPU), [(kind_of("conv2d"), {"masked": 1.0})])
    assert table.read(own_table)[1] == {kind_of("conv2d"): {"masked": 1.0}}


def test_a_folder_in_the_place_of_the_table_is_no_obstacle(own_table):
    own_table.mkdir(parents=True)
    with pytest.warns(UserWarning, match="ignored"):
        GroupedConv2d(16, 16, 3, groups="log:3")(torch.randn(2, 16, 8, 8))


def extend_often(first):
    for channels in range(first, first + 100):
        table.extend(this_machine(CPU), [(replace(kind_of("conv2d"), channels=channels), {"loop": 1.0})])


@pytest.mark.parametrize("worker", [multiprocessing.get_context("fork").Process, threading.Thread])
def test_processes_and_threads_that_measure_at_once_lose_nothing(own_table, worker):
    workers = [worker(target=extend_often, args=(first,)) for first in (0, 100)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert sorted(kind.channels for kind in table.read(own_table)[1]) == list(range(200))
    assert {path.name for path in own_table.parent.iterdir()} == {own_table.name, f".{own_table.name}.lock"}


def test_a_system_without_file_locks_goes_on_without(own_table, monkeypatch):
    monkeypatch.setattr(table, "fcntl", None)
    extend_often(0)
    assert len(table.read(own_table)[1]) == 100


def test_what_cannot_be_written_holds_for_this_process_and_is_written_later(own_table):
    """One warning names the path and the reason; also a removal holds, and other programs' times are kept."""
    here, other = this_machine(CPU), kind_of("conv2d", UNIFORM)
    in_the_way = own_table.parents[1]
    in_the_way.write_text("no folder")
    says = rf"^kernel table {re.escape(str(own_table))} cannot be written: (Not a directory|File exists); .* in memory"
    with pytest.warns(UserWarning, match=says) as warned:
        for op in OPS:
            table.extend(here, [(kind_of(op), {"masked": 1.0, "loop": 2.0})])
        table.extend(here, [(kind_of(OPS[1]), {})])
        dispatch.forget()
        assert names()[::2] == ("masked",) * 2
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    kept = {kind_of(op): {"masked": 1.0, "loop": 2.0} for op in OPS[::2]}
    assert table.own(here) == kept
    assert str(own_table) in table.write_failure(here)
    in_the_way.unlink()
    table.write(own_table, here, {other: {"loop": 3.0}, kind_of(OPS[1]): {"loop": 3.0}})
    table.extend(here, [(kind_of("step"), {"apart": 4.0})])
    assert table.read(own_table)[1] == kept | {other: {"loop": 3.0}, kind_of("step"): {"apart": 4.0}}
    assert table.write_failure(here) == ""


@pytest.fixture
def cpu(own_table, monkeypatch):
    """Simulate another CPU, without measurements."""

    def set_units(bf16: bool, matrix: bool) -> None:
        monkeypatch.setattr(machine, "computes", lambda dtype: bf16 and dtype == torch.bfloat16)
        monkeypatch.setattr(machine, "has_matrix_units", lambda: matrix)
        dispatch.forget()

    return set_units


MANY = Geometry(Partition((24, *[1, 3] * 10)), Partition((24, *[1, 3] * 10)), (3, 3), padding=(1, 1))


@pytest.mark.parametrize(
    ("bf16", "matrix", "dtype", "uneven", "uniform"),
    [
        (False, False, torch.float32, "merged", "native"),
        (True, True, torch.float32, "merged", "native"),
        (True, False, torch.bfloat16, "merged", "native"),
        (True, True, torch.bfloat16, "packed", "native"),
        (False, False, torch.bfloat16, "widened", "widened"),
        (True, True, torch.float16, "widened", "widened"),
    ],
)
def test_without_a_table_aten_computes_by_rule_on_every_cpu(cpu, bf16, matrix, dtype, uneven, uniform):
    cpu(bf16, matrix)
    for geometry in (LOG, MANY):
        assert names(geometry, dtype) == (uneven,) * 3
    assert names(UNIFORM, dtype) == (uniform,) * 3
    assert "no such layer is measured" in choose.choose("conv2d", LOG, dtype, CPU, True, BITS).reason


@pytest.mark.parametrize(
    ("groups", "channels", "pixels", "kernel", "training"),
    [
        # Of 64² pairs, log:5 connects 1392 in 4 calls, packed has 2048: 656 zeros × 9 × 1024 = 6.0 million MACs, which
        # cost less than three calls; twice that for two images.
        ("log:5", 64, 1024, "packed", "merged"),
        ("log:5", 64, 2 * 1024, "merged", "merged"),
        ("log:3", 64, 1024, "merged", "merged"),
        ("log:5", 128, 256, "packed", "merged"),
        # 512² · 0.3398 · 9 = 801,792 weights for 49 pixels: a matrix product per group. 192² · 0.3438 · 9 = 114,048.
        ("log:5", 512, 49, "merged", "loop"),
        ("log:5", 512, 128, "merged", "merged"),
        ("log:4", 192, 49, "packed", "merged"),
        ("4", 64, 1024, "native", "native"),
    ],
)
def test_few_pixels_have_rules_of_their_own(cpu, groups, channels, pixels, kernel, training):
    cpu(bf16=False, matrix=False)
    partition = Partition.of(groups, channels)
    geometry = Geometry(partition, partition, (3, 3), padding=(1, 1))
    bits = choose.pixel_bits(1, 1, pixels)
    assert names(geometry, bits=bits) == (kernel, training, training)
    assert choose.together(geometry, torch.float32, CPU, True, bits) == training


def test_nothing_is_timed_in_a_training_step(own_table, monkeypatch):
    def clock():
        raise AssertionError("a training step looked at the clock")

    monkeypatch.setattr("time.perf_counter", clock)
    monkeypatch.setattr("time.time", clock)
    GroupedConv2d(16, 16, 3, groups="log:3")(torch.randn(2, 16, 8, 8)).sum().backward()
    assert not own_table.exists()


def test_the_table_lies_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made_on = Machine("AMD EPYC", "cpu-avx2", "2.13.0+cpu", 2)
    name = "AMD-EPYC-cpu-avx2-2-threads-torch-2.13.0+cpu.csv"
    assert table.own_path(made_on) == tmp_path / "gconv" / "kernels" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert table.own_path(made_on) == tmp_path / ".cache" / "gconv" / "kernels" / name


def test_explain_names_kernel_reason_and_floor(own_table):
    layer = GroupedConv2d(64, 64, 3, padding=1, groups="log:4", bias=False)
    rows = {kind_of(op): {"masked": 0.8, "loop": 1.2, "dense": 1.0} for op in (*OPS, "step")}
    table.write(own_table, this_machine(CPU), rows)
    dispatch.forget()
    explanation = explain(layer, (64, 64, 32, 32))
    links = 32 * 32 + 16 * 16 + 2 * 8 * 8
    assert explanation.share == links / 64**2 == 0.34375
    assert [op.op for op in explanation.ops] == [*OPS, "step"]
    for op in explanation.ops[:3]:
        assert op.kernel == "masked"
        assert op.macs == 64 * 32 * 32 * 9 * links
        assert op.bytes == 4 * (2 * 64 * 64 * 32 * 32 + 9 * links)
        assert op.of_dense == pytest.approx(0.8)
        assert op.floor is None  # nobody knows the peaks of this CPU
    assert explanation.ops[3].kernel == "apart"
    assert explanation.ops[3].macs == 3 * explanation.ops[0].macs
    text = str(explanation)
    for words in (
        "log:4",
        "each op by its own kernel",
        "ideal share of the dense time: 0.344",
        "fastest measured",
        "loop 1.50 × as long",
    ):
        assert words in text
    with forced_kernel("packed"):
        assert "packed    forced" in str(explain(layer, (64, 32, 32)))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*64 -> 64 channels in groups log:4"):
        explain(layer, (3, 32, 32))


def test_floors_of_a_known_device_are_those_worked_out_by_hand(monkeypatch):
    """bf16 3×3, batch 256, 64 channels at 56: dense is bound by arithmetic (74.9 µs), two groups by memory (47.8)."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    for groups, microseconds in ((1, 74.9), (2, 47.8), ("log:5", 47.8)):
        geometry = GroupedConv2d(64, 64, 3, padding=1, groups=groups, device="meta").geometry
        macs, numbers = explanation.floor_of(geometry, (256, 64, 56, 56))
        seconds = explanation.seconds_of(macs, 2 * numbers, torch.bfloat16, torch.device("cuda"))
        assert 1e6 * seconds == pytest.approx(microseconds, rel=0.01)
