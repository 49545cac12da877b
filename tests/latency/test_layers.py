"""Layers against the roofline."""

import pytest

from edgetune.latency.layers import with_roof

ROOF = {"int8_ops_s": 2e9, "fp32_ops_s": 1e9, "fp16_ops_s": None, "bytes_s": 1e9, "source": "made up"}


def layer(**values: object) -> dict[str, object]:
    return {
        "name": "a",
        "kind": "Conv",
        "precision": "fp32",
        "ms": 4.0,
        "bytes": 1_000_000,
        "operations": 2_000_000,
    } | values


def test_the_distance_is_to_the_larger_of_the_two() -> None:
    compute, memory, int8 = with_roof(
        [layer(), layer(bytes=3_000_000), layer(precision="int8", bytes=0)], ROOF, "a test"
    )["layers"]
    assert (compute["roofline_ms"], compute["distance"], compute["bound"]) == (2.0, 2.0, "compute")
    assert (memory["roofline_ms"], memory["bound"]) == (3.0, "memory")
    assert (int8["roofline_ms"], int8["distance"]) == (1.0, 4.0)
    assert [one["share"] for one in (compute, memory, int8)] == [pytest.approx(1 / 3)] * 3


def test_what_a_cache_holds_moves_faster() -> None:
    roof = ROOF | {"cache_bytes_s": 1e10, "cache_bytes": 2_000_000}
    small, large = with_roof([layer(operations=0), layer(operations=0, bytes=3_000_000)], roof, "a test")[
        "layers"
    ]
    assert (small["roofline_ms"], large["roofline_ms"]) == (pytest.approx(0.1), 3.0)


@pytest.mark.parametrize("unknown", [{"operations": None}, {"bytes": None}, {"precision": ""}])
def test_no_distance_from_what_is_not_known(unknown: dict[str, object]) -> None:
    found = with_roof([layer(**unknown)], ROOF, "a test")["layers"][0]
    assert (found["roofline_ms"], found["distance"], found["bound"]) == (None, None, "")


def test_a_type_without_a_peak_of_its_own_is_held_against_fp32() -> None:
    assert with_roof([layer(precision="fp16")], ROOF, "a test")["layers"][0]["roofline_ms"] == 2.0
