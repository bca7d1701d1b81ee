"""Arrays of a packed run: small, and to the eye those of the run."""

import contextlib
import io
import zipfile

import numpy as np
import pytest

from experiments.store.packed import ARRAYS, MARK, MEASURED, RECORDS, NotGatheredError, for_pictures, pack, unpack


def _bytes(arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return len(file.getvalue())


def test_matrices_are_rounded_to_less_than_a_colour_and_take_fewer_bytes():
    filters = np.random.default_rng(0).normal(size=(200, 50)).astype(np.float32)
    matrix = np.corrcoef(filters).astype(np.float32)
    packed = for_pictures({"matrix": matrix})["matrix"]
    assert packed.dtype == np.float16
    off_diagonal = np.quantile(np.abs(matrix), 0.99)
    assert np.abs(packed - matrix).max() <= off_diagonal / 128 / 2 + 1e-3  # half a step, and 1 in half precision
    assert _bytes({"matrix": packed}) < 0.8 * _bytes({"matrix": matrix.astype(np.float16)})
    np.testing.assert_array_equal(for_pictures({"matrix": packed.astype(np.float32)})["matrix"], packed)


def test_what_is_no_square_matrix_keeps_its_values():
    numbers = np.linspace(-1, 1, 7, dtype=np.float32)
    arrays = {
        "filters": np.ones((2, 3, 5, 5), np.float32) / 3,
        "index": numbers.astype(np.float64) / 3,
        "labels": np.arange(4),
        "zero": np.zeros((3, 3), np.float32),
        "unknown": np.full((3, 3), np.nan, np.float32),
    }
    packed = for_pictures(arrays)
    for name, x in arrays.items():
        expected = x.astype(np.float16) if x.dtype == np.float32 else x
        np.testing.assert_array_equal(packed[name], expected)


def test_a_symmetric_matrix_is_packed_as_one_triangle_and_comes_back_whole(tmp_path):
    for name in (*RECORDS, *MEASURED):
        (tmp_path / name).write_text("{}")
    arrays = {
        "correlation conv1": np.array([[1, 0.5, np.nan], [0.5, 1, 0.25], [np.nan, 0.25, 1]]),
        "whitened conv1-conv2": np.array([[1, 2.0], [3, 4]]),
        "one": np.array([[7.0]]),
    }
    np.savez(tmp_path / ARRAYS, **arrays)
    pack(tmp_path, tmp_path / "run.zip", with_arrays=True)
    with zipfile.ZipFile(tmp_path / "run.zip") as archive, np.load(io.BytesIO(archive.read(ARRAYS))) as packed:
        triangle = packed["correlation conv1 (upper triangle)"]
        np.testing.assert_array_equal(triangle, [1, 0.5, np.nan, 1, 0.25, 1])
        assert set(packed) == {"correlation conv1 (upper triangle)", "whitened conv1-conv2", "one (upper triangle)"}
    unpack(tmp_path / "run.zip", tmp_path / "unpacked")
    with np.load(tmp_path / "unpacked" / ARRAYS) as whole:
        assert set(whole) == set(arrays)
        for name, x in arrays.items():
            np.testing.assert_array_equal(whole[name], x)


def test_the_largest_arrays_are_left_out_of_a_packed_run(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.store.packed.MOST_BYTES", 3000)
    for name in (*RECORDS, *MEASURED):
        (tmp_path / name).write_text("{}")
    rng = np.random.default_rng(0)
    arrays = {name: rng.bytes(size) for name, size in (("a", 900), ("large", 2500), ("b", 700))}
    np.savez(tmp_path / ARRAYS, **{name: np.frombuffer(x, np.uint8) for name, x in arrays.items()})
    pack(tmp_path, tmp_path / "run.zip", with_arrays=True)
    unpack(tmp_path / "run.zip", tmp_path / "unpacked")
    with np.load(tmp_path / "unpacked" / ARRAYS) as kept:
        assert {name: x.tobytes() for name, x in kept.items()} == {name: arrays[name] for name in ("a", "b")}


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


DAMAGED = {
    "a length that is none of a triangle": _npz(**{"m (upper triangle)": np.ones(5)}),
    "two dimensions": _npz(**{"m (upper triangle)": np.ones((1, 6))}),
    "text": _npz(**{"m (upper triangle)": np.array(["a", "b", "c"])}),
    "one array, no archive": _npy(np.ones(3)),
    "an argument of NumPy": _npz(**{"file.npy": np.ones(3)}).replace(b"file.npy.npy", b"file.npy\0\0\0\0"),
    "cut": _npz(m=np.ones(100))[:-40],
    "nothing": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_arrays_are_said_in_a_line(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        archive.writestr(MARK, '{"schema": 2}')
        archive.writestr(ARRAYS, content)
    with pytest.raises(NotGatheredError, match=r"^damaged: ") as error:
        unpack(tmp_path / "run.zip", tmp_path / "unpacked")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(20))
def test_any_changed_byte_of_a_packed_run_is_read_or_said(tmp_path, seed):
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MARK, '{"schema": 2}')
        archive.writestr(ARRAYS, _npz(m=np.arange(30.0)))
    content = bytearray((tmp_path / "run.zip").read_bytes())
    for place in rng.integers(0, len(content), 40):
        changed = content.copy()
        changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "changed.zip").write_bytes(changed)
        with contextlib.suppress(NotGatheredError, FileExistsError):
            unpack(tmp_path / "changed.zip", tmp_path / f"unpacked-{place}")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("correlation conv1 (upper triangle)", np.zeros(10)),  # 4 × 4, where 3 × 3 is right
        ("groups conv1 read", np.array(["x"])),
        ("whitened conv1-conv2", np.zeros((3, 3))),
        ("colour_index", np.zeros(2)),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_no_packed_run(tmp_path, name, wrong):
    for record in (*RECORDS, *MEASURED):
        (tmp_path / record).write_text("{}")
    arrays = {
        "correlation conv1": np.eye(3),
        "groups conv1 read": np.array([0, 0, 1]),
        **{"whitened conv1-conv2": np.zeros((3, 2)), "whitened conv1-conv2 rows": np.zeros(3, int)},
        **{"whitened conv1-conv2 columns": np.zeros(2, int)},
        **{"filters": np.zeros((3, 3, 5, 5)), "colour_index": np.zeros(3)},
    }
    np.savez(tmp_path / ARRAYS, **arrays)
    pack(tmp_path, tmp_path / "run.zip", with_arrays=True)
    unpack(tmp_path / "run.zip", tmp_path / "right")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        files = {file: archive.read(file) for file in archive.namelist()}
    content = io.BytesIO()
    np.savez(content, **dict(np.load(io.BytesIO(files[ARRAYS]))) | {name: wrong})
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for file, text in (files | {ARRAYS: content.getvalue()}).items():
            archive.writestr(file, text)
    array = name.removesuffix(" (upper triangle)")
    with pytest.raises(NotGatheredError, match=rf"^damaged: arrays.npz: {array}: .*(no numbers|does not fit)"):
        unpack(tmp_path / "run.zip", tmp_path / "wrong")
