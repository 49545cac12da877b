"""The costliest layers as rows."""

from edgetune.report.layers import COLUMNS, costliest, rows, shown


def layer(**values: object) -> dict[str, object]:
    one = {"name": "conv", "kind": "Conv", "precision": "int8", "ms": 0.5, "share": 0.25, "bytes": 12_000}
    return {**one, "operations": 3_000_000, "roofline_ms": 0.25, "distance": 2.0, "bound": "memory", **values}


def test_the_costliest_come_first() -> None:
    found = costliest([layer(name=str(n), ms=float(n % 7)) for n in range(14)])
    assert [one["ms"] for one in found] == [6, 6, 5, 5, 4, 4, 3, 3, 2, 2]
    assert costliest([]) == []


def test_rows_say_what_is_known() -> None:
    known, unknown = rows(
        [layer(), layer(ms=0.1, bytes=None, operations=None, distance=None, precision="", kind="")]
    )
    assert known[1:3] == ["Conv", "int8"]
    assert known[-1].endswith("× (memory)")
    assert unknown[1:3] + unknown[5:] == ["–"] * 5
    assert len(known) == len(COLUMNS)
    assert known[6] == "3.00 M"


def test_names_are_those_of_the_file() -> None:
    given = ["/a/Clip_output_0_nchwc", "/a/Conv_token_12", "conv_1", "_nchwc"]
    assert [shown(name) for name in given] == ["/a/Clip", "/a/Conv", "conv_1", "_nchwc"]
