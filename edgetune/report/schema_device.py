"""What report.json holds of engines on a device: FP16 beside INT8, each beside what ONNX Runtime gave.

It may import the report's part only.
"""

from edgetune.report.part import Part, Ratio


class Decided(Part):
    """A finding in a word and a sentence."""

    status: str = ""
    winner: str = ""
    sentence: str = ""


class Share(Part):
    """Accuracy on the labelled samples, with its interval."""

    images: int | None = None
    right: int | None = None
    top1: float | None = None
    low: float | None = None
    high: float | None = None


class Precisions(Part):
    """How many layers run in which precision."""

    int8: int = 0
    fp16: int = 0
    fp32: int = 0
    other: int = 0


class TimedLayer(Part):
    """A layer with its time, and how far that is from the roofline."""

    name: str = ""
    kind: str = ""
    precision: str = ""
    ms: float = 0.0
    share: float = 0.0
    bytes: int | None = None
    operations: int | None = None
    roofline_ms: float | None = None
    distance: float | None = None
    bound: str = ""


class Roof(Part):
    """Where the peaks come from."""

    source: str = ""


class TimedLayers(Part):
    """All layers of an engine in running order."""

    source: str = ""
    total_ms: float = 0.0
    roof: Roof = Roof()
    layers: tuple[TimedLayer, ...] = ()


class Engine(Part):
    """An engine: how it was built, and what it gives beside ONNX Runtime.

    `memory_mb`: weights and activations; `gpu_layers`: that the GPU runs beside a DLA, of `all_layers`.
    """

    build_seconds: float | None = None
    plan_bytes: int | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    memory_mb: float | None = None
    layers: Precisions | None = None
    reformats: int | None = None
    fallbacks: tuple[str, ...] = ()
    gpu_layers: int | None = None
    gpu_names: tuple[str, ...] = ()
    dla_parts: int | None = None
    all_layers: int | None = None
    messages: tuple[str, ...] = ()
    samples: int = 0
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    cosine_mean: float | None = None
    sqnr_db: float | None = None
    difference: float | None = None
    accuracy: Share | None = None
    host_accuracy: Share | None = None
    timed_layers: TimedLayers | None = None


class Lost(Part):
    """A drop in accuracy in points, with its interval."""

    images: int | None = None
    points: float | None = None
    low: float | None = None
    high: float | None = None


class Energy(Part):
    """Energy of one inference in mJ, of the rails named; `estimated`: from mean power."""

    mj: float | None = None
    low: float | None = None
    high: float | None = None
    rails: tuple[str, ...] = ()
    estimated: bool = False


class Run(Part):
    """Latency of one engine; intervals of median and p99."""

    count: int | None = None
    warmup: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p90_early_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    p99_low_ms: float | None = None
    p99_high_ms: float | None = None
    samples_ms: tuple[float, ...] = ()


class EngineTiming(Part):
    """One timing of both engines.

    `speedup`: how many times faster INT8 is than FP16; `temperatures_c`: first and highest per zone;
    `single_stream`: timed as long as MLPerf's SingleStream.
    """

    engine: str = ""
    rounds: int | None = None
    models: dict[str, Run] = {}
    speedup: Ratio = Ratio()
    trusted: bool = True
    why: str = ""
    energy: dict[str, Energy] = {}
    energy_why: str = ""
    temperatures_c: dict[str, tuple[float, ...]] = {}
    single_stream: bool = False


class EngineLength(Part):
    """What an engine gives for texts of one length."""

    agreement: float | None = None
    accuracy: Share | None = None


class DeviceLength(Part):
    """Both engines on texts of one length."""

    length: int = 0
    samples: int | None = None
    engines: dict[str, EngineLength] = {}
    timing: dict[str, EngineTiming] = {}


class Found(Part):
    """What the device is."""

    module: str = ""
    jetpack: str = ""
    l4t: str = ""
    cuda: str = ""
    power_mode: str = ""
    clocks_locked: bool | None = None


class Warned(Part):
    """What spoilt something there."""

    message: str = ""
    remedy: str = ""


class Trouble(Part):
    """Why a step failed there."""

    message: str = ""
    hint: str = ""


class Device(Part):
    """All that is shown of a device. `without_qdq`: INT8 came of scales beside a graph, for a DLA."""

    name: str = ""
    tool: str = ""
    tensorrt: str = ""
    wanted: dict[str, object] = {}
    without_qdq: bool = False
    found: Found = Found()
    warnings: tuple[Warned, ...] = ()
    errors: dict[str, Trouble] = {}
    finished: bool = True
    samples: int | None = None
    labelled: int | None = None
    engines: dict[str, Engine] = {}
    drop: Lost | None = None
    timing: dict[str, EngineTiming] = {}
    lengths: tuple[DeviceLength, ...] = ()
    diagnosis: Decided = Decided()
    worth: Decided = Decided()
