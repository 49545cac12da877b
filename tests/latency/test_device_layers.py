"""Layers timed on a device: names lead to operations, kinds to bytes, the profile to peaks."""

from edgetune.device.results import LayerFacts, Layers, LayerTime
from edgetune.latency.device_layers import device_layers

FACTS = Layers(
    layers=(LayerFacts(name="conv + relu", kind="Convolution", precision="int8", bytes=4096),), detailed=True
)
COUNTED = {"conv": 147456, "relu": 2048, "strange": None}


def test_layers_against_the_peaks_of_the_profile() -> None:
    times = [
        LayerTime(name="conv + relu", average_ms=0.3, median_ms=0.2),
        LayerTime(name="copy", average_ms=0.1),
        LayerTime(name="relu + strange", average_ms=0.1),
    ]
    found = device_layers(FACTS, times, COUNTED, "jetson-agx-orin-64gb", "trtexec")
    assert found is not None
    conv, copy, strange = found["layers"]
    assert (conv["kind"], conv["precision"], conv["ms"], conv["bytes"]) == ("Convolution", "int8", 0.2, 4096)
    assert conv["operations"] == 147456 + 2048
    assert conv["distance"] is not None
    assert conv["distance"] > 1
    # Of a copy the engine tells nothing, and there is no node of its name: no figure is made up.
    assert (copy["ms"], copy["operations"], copy["distance"]) == (0.1, None, None)
    assert strange["operations"] is None
    assert "of the profile jetson-agx-orin-64gb" in found["roof"]["source"]
    assert found["source"] == "trtexec"


def test_without_a_profile_there_is_no_distance() -> None:
    times = [LayerTime(name="conv + relu", average_ms=1.0)]
    for profile, why in (("mine:15W", "no profile 'mine:15W'"), ("host-cpu", "is no GPU; name the device")):
        found = device_layers(FACTS, times, COUNTED, profile, "trtexec")
        assert found is not None
        assert found["layers"][0]["operations"]
        assert found["layers"][0]["distance"] is None
        assert why in found["roof"]["source"]


def test_nothing_timed_is_nothing() -> None:
    assert device_layers(FACTS, [], COUNTED, "jetson-agx-orin-64gb", "trtexec") is None
