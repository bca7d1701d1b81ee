import pytest
import torch

from gconv.energy import energy_meter, measure_energies

CPU = torch.device("cpu")


def zone(folder, name, energy, most):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", 1_000_000, 9_999_999)
    zone(tmp_path, "intel-rapl:1", 5_000_000, 9_999_999)
    zone(tmp_path, "intel-rapl:0:0", 0, 9_999_999)  # the cores, a part of package 0
    meter = energy_meter(CPU, tmp_path)
    assert meter() == 0
    zone(tmp_path, "intel-rapl:0", 3_500_000, 9_999_999)
    zone(tmp_path, "intel-rapl:1", 6_000_000, 9_999_999)
    zone(tmp_path, "intel-rapl:0:0", 7_000_000, 9_999_999)
    assert meter() == pytest.approx(3.5)


def test_a_counter_that_starts_again_from_zero_goes_on(tmp_path):
    zone(tmp_path, "intel-rapl:0", 9_000_000, 9_999_999)
    meter = energy_meter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", 500_000, 9_999_999)
    assert meter() == pytest.approx(1.5)
    zone(tmp_path, "intel-rapl:0", 800_000, 9_999_999)
    assert meter() == pytest.approx(1.8)


@pytest.mark.parametrize("content", [None, "no number"])
def test_where_the_hardware_does_not_tell_there_is_no_meter(tmp_path, content):
    if content:
        zone(tmp_path, "intel-rapl:0", content, 1)
    assert energy_meter(CPU, tmp_path) is None
    assert energy_meter(torch.device("mps"), tmp_path) is None


def test_the_energy_of_each_call_is_measured_separately():
    spent = 0.0

    def spending(joules):
        def call():
            nonlocal spent
            spent += joules

        return call

    calls = {"small": spending(0.25), "large": spending(2.0)}
    assert measure_energies(calls, CPU, lambda: spent, repeats=3, seconds=0.001) == pytest.approx(
        {"small": 0.25, "large": 2.0}
    )
