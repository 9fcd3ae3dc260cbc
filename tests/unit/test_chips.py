"""Apple's chips as data."""

from __future__ import annotations

import pytest

from magistral_mlx.memory.chips import GIB, chips, find_chip, working_set


def test_a_chip_is_found_by_the_name_that_macos_gives_it():
    chip = find_chip("Apple M4 Pro", 20)
    assert chip is not None
    assert (chip.name, chip.gpu_cores, chip.bandwidth) == ("Apple M4 Pro", 20, 273)


@pytest.mark.parametrize("name", ["Apple M3 Max", "M3 Max", "m3 max", " apple m3 max "])
def test_a_chip_whose_cores_are_not_known_is_taken_for_its_smallest_variant(name):
    chip = find_chip(name)
    assert chip is not None
    assert (chip.gpu_cores, chip.bandwidth) == (30, 300)


def test_the_memory_tells_a_variant_where_only_one_is_sold_with_it():
    large, small = find_chip("Apple M3 Max", None, 128 * GIB), find_chip("M6", 12, 16 * GIB)
    assert large is not None and small is not None
    assert (large.gpu_cores, large.bandwidth) == (40, 400)
    assert small.bandwidth == 153
    assert find_chip("M6", 12, 32 * GIB) == chips()[-1]


def test_a_chip_that_is_not_in_the_table_is_not_guessed():
    assert find_chip("Apple M99 Ultra") is None
    assert find_chip("Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz") is None
    assert find_chip("Apple M3 Ma") is None


def test_unknown_cores_or_memory_still_give_the_chip():
    assert find_chip("Apple M1", gpu_cores=9) == find_chip("Apple M1", 7)
    assert find_chip("Apple M1", memory_bytes=512 * GIB) == find_chip("Apple M1")


def test_every_row_has_a_source_and_figures_in_order():
    names = [chip.name for chip in chips()]
    for family in ("M1", "M2", "M3", "M4", "M5"):
        assert {f"Apple {family}{kind}" for kind in ("", " Pro", " Max")} <= set(names)
    for family in ("M1", "M2", "M3", "M5"):  # there is no M4 Ultra
        assert f"Apple {family} Ultra" in names
    assert "Apple M6" in names
    for chip in chips():
        assert chip.source and 2020 <= chip.year <= 2026
        assert 60 < chip.bandwidth < 1300 and chip.memory == tuple(sorted(chip.memory))
        assert (chip.fp32_tflops is None) == (chip.compute_source is None)
    for before, after in zip(chips(), chips()[1:], strict=False):
        if before.name == after.name:
            assert before.gpu_cores <= after.gpu_cores
            assert before.bandwidth <= after.bandwidth


def test_matrix_units_count_where_a_chip_has_them():
    old, new = find_chip("M4 Max", 40), find_chip("M5 Max", 40)
    assert old is not None and new is not None
    assert old.fp16_tflops == old.fp32_tflops
    assert new.fp16_tflops is not None and new.fp32_tflops is not None
    assert new.fp16_tflops > 3 * new.fp32_tflops


# What llama.cpp printed on such Macs, MB of 10^6 bytes.
BEFORE_26 = {
    16: 11453.25,
    24: 17179.89,
    32: 22906.50,
    36: 28991.03,
    48: 38654.71,
    64: 51539.61,
    128: 103079.22,
}
FROM_26 = {
    16: 12713.12,
    24: 19069.67,
    32: 26800.60,
    36: 30150.67,
    48: 40200.90,
    64: 55662.79,
    128: 115448.73,
}


@pytest.mark.parametrize("gib", BEFORE_26)
def test_the_working_set_is_what_metal_reported_on_macs_of_that_size(gib):
    for macos, logged in ((None, BEFORE_26), (15, BEFORE_26), (26, FROM_26), (27, FROM_26)):
        assert working_set(gib * GIB, macos) / 1e6 == pytest.approx(logged[gib], rel=2e-5)


def test_a_32_gib_mac_offers_21_gib_and_a_third():
    assert working_set(32 * GIB) / GIB == pytest.approx(21.33, abs=0.01)


def test_sizes_without_a_log_take_the_share_of_the_next_smaller_one():
    assert working_set(8 * GIB, 26) == 8 * GIB * 2 // 3
    assert working_set(96 * GIB, 26) == 96 * GIB * 81 // 100
    assert working_set(18 * GIB) == 12 * GIB
