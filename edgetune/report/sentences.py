"""What a report says in sentences, the same in Markdown and HTML.

It knows nothing of how things look. It may import the report's schema, its view and its wording.
"""

from collections import Counter
from collections.abc import Sequence

from edgetune.report import wording
from edgetune.report.schema import Accuracy, ClassRow, Data, Parity, Report, Right, Training, Transfer
from edgetune.report.schema_int8 import Calibration, Quantization
from edgetune.report.view import MATRIX_CLASSES, data_classes, planned, splits
from edgetune.report.view_int8 import decibels, settling, short_name, worst_layers


def subtitle(report: Report) -> list[str]:
    """Return what the report is about: network, target, time."""
    model = report.recipe.get("model")
    network = model.get("name") if isinstance(model, dict) else None
    title, label = report.profile.title, report.profile.label
    target = f"{title} ({label})" if title and label else title or label
    return [words for words in (str(network or ""), target, wording.when(report.made_at)) if words]


def training_sentence(training: Training) -> str:
    """Say how long what was trained, and which epoch was kept."""
    ways = ", ".join(filter(None, (training.strategy, training.optimizer, training.accelerator)))
    parts = [wording.count(len(training.epochs), "epoch") + (f" ({ways})" if ways else "")]
    if training.seconds is not None:
        parts.append(f"in {wording.seconds(training.seconds)}")
    if training.parameters and training.trained_parameters is not None:
        share = training.trained_parameters / training.parameters
        trained = "all" if share == 1 else wording.percent(share, 0 if share > 0.1 else 1)
        parts.append(f"training {trained} of {wording.count(training.parameters, 'parameter')}")
    kept = f"; epoch {training.best_epoch} was kept" if training.best_epoch is not None else ""
    if kept and training.val_top1 is not None:
        kept += f", the best on the validation split ({wording.percent(training.val_top1)})"
    early = "; it stopped early, as nothing got better any more" if training.stopped_early else ""
    cut = training.texts_cut
    long = f" Cut, as longer than the network takes: {wording.count(cut, 'training text')}." if cut else ""
    return " ".join(parts) + kept + early + "." + long + _waits(training)


def _waits(training: Training) -> str:
    """Say how long the model waited for data."""
    told = [
        (e.waited_seconds, e.seconds) for e in training.epochs if e.waited_seconds is not None and e.seconds
    ]
    if not told:
        return ""
    share = sum(waited for waited, _ in told) / sum(seconds for _, seconds in told)
    decoded = training.decode_seconds
    before = f"; before that, decoding the images took {wording.seconds(decoded)}" if decoded else ""
    return f" The model waited for data {wording.percent(share, 1)} of the training time{before}."


def drop_sentence(accuracy: Accuracy) -> str:
    """Say what INT8 gets wrong that FP32 got right, and the other way round; without INT8, what FP32 gets right."""
    drop, parts = accuracy.drop, []
    fp32 = accuracy.models.get("fp32", Right())
    if "int8" not in accuracy.models and fp32.right is not None:
        known = fp32.low is not None and fp32.high is not None
        span = wording.interval(100 * (fp32.low or 0), 100 * (fp32.high or 0), "percent") if known else ""
        images = wording.count(accuracy.images, "test input")
        return f"Of {images}, FP32 gets {fp32.right} right" + (f" (95%: {span})." if span else ".")
    if drop.worse is not None and drop.better is not None:
        some = accuracy.images and accuracy.of and accuracy.images < accuracy.of
        images = f"Of {wording.count(accuracy.images, 'test input')}, " if accuracy.images else ""
        if some:
            images = (
                f"Of the {wording.count(accuracy.images)} test inputs judged (there are {accuracy.of:,}), "
            )
        parts.append(f"{images}INT8 gets {drop.worse} wrong that FP32 gets right, "
                     f"and {drop.better} right that FP32 gets wrong")  # fmt: skip
    if drop.points is not None:
        span = wording.interval(drop.low, drop.high, "points").removesuffix(" points")
        parts.append(f"a drop of {wording.points(drop.points)} points" + (f" (95%: {span})" if span else ""))
    sentence = ": ".join(parts)
    said = [f"{sentence[0].upper()}{sentence[1:]}."] if sentence else []
    if drop.p_value is not None:
        p = wording.number(drop.p_value, 2)
        said.append(f"McNemar's exact test: p = {p}, how likely chance alone brings a difference this large.")
    return " ".join(said)


def confidence_sentence(accuracy: Accuracy) -> str:
    """Say how far each network's confidence lies from its accuracy."""
    fp32, int8 = (accuracy.models.get(name, Right()) for name in ("fp32", "int8"))
    if int8.ece is None:
        return ""
    before = "" if fp32.ece is None else f"{wording.percent(fp32.ece)} with FP32, "
    said = (
        "Expected calibration error (how far confidence lies from accuracy, mean over 15 bins): "
        f"{before}{wording.percent(int8.ece)} with INT8."
    )
    if int8.confidence is None or int8.top1 is None:
        return said
    sure, right = wording.percent(int8.confidence), wording.percent(int8.top1)
    return f"{said} INT8 is {sure} sure on average, and right in {right}."


def transfer_sentence(transfer: Transfer) -> str:
    """Say what transfer bought."""
    if transfer.pretrained_top1 is None or transfer.scratch_top1 is None:
        return ""
    points = transfer.points
    if points is None:
        points = 100 * (transfer.pretrained_top1 - transfer.scratch_top1)
    split = {"val": "validation", "test": "test"}.get(transfer.split, transfer.split)
    images = f" on {wording.count(transfer.images, f'{split} input'.strip())}" if transfer.images else ""
    span = wording.interval(transfer.low, transfer.high, "points").removesuffix(" points")
    gain = f"{wording.points(points)} points" + (f" ({span})" if span else "")
    return (
        f"Starting from pretrained weights, the network reaches {wording.percent(transfer.pretrained_top1)}"
        f"{images}; from random weights, with the same budget, {wording.percent(transfer.scratch_top1)}. "
        f"Transfer bought {gain}.{_head_start(transfer)}"
    )


def _head_start(transfer: Transfer) -> str:
    """Say how many epochs each needed to come within a point of what both reach on the validation split."""
    curves = [
        [(e.epoch, e.val_top1) for e in epochs if e.val_top1 is not None]
        for epochs in (transfer.epochs_pretrained, transfer.epochs_scratch)
    ]
    if not all(curves):
        return ""
    level = min(max(top1 for _, top1 in curve) for curve in curves)
    ours, bare = (next(epoch for epoch, top1 in curve if top1 >= level - 0.01) for curve in curves)
    return (
        f" It came within a point of {wording.percent(level)} validation accuracy after "
        f"{wording.count(ours, 'epoch')}, from scratch after {wording.count(bare)}."
    )


def layer_sentence(report: Report) -> str:
    """Say how much of the network is INT8, and what is not: a fact here, a plan for a device's engine."""
    other = Counter(layer.op for layer in report.layers if layer.precision != "INT8")
    int8 = len(report.layers) - other.total()
    kinds = ", ".join(f"{times} {op}" for op, times in other.most_common())
    weak = report.profile.rendering == "weak"
    rest = f"; in float{' (FP16 in the engine)' if weak else ''}: {kinds}" if kinds else ""
    if not planned(report):
        return f"{int8} of {wording.count(len(report.layers), 'operation')} run in INT8{rest}."
    decides = " TensorRT decides when it builds the engine on the device." if weak else ""
    return f"{int8} of {wording.count(len(report.layers), 'operation')} are planned in INT8{rest}.{decides}"


def classes_sentence(rows: Sequence[ClassRow], shown: Sequence[ClassRow]) -> str:
    """Say which classes are shown, or nothing where all are."""
    if len(shown) == len(rows):
        return ""
    judged = sum(row.images > 0 for row in rows)
    some = " with test inputs" if judged < len(rows) else ""
    if len(shown) == judged:
        return f"the {judged} of {wording.count(len(rows), 'class', 'classes')}{some}"
    return (
        f"the {len(shown)} of {wording.count(judged, 'class', 'classes')}{some} "
        "that lose most from FP32 to INT8"
    )


def no_matrix(accuracy: Accuracy) -> str:
    """Say why there is no confusion matrix, or nothing where one is drawn, or there is no INT8 to draw."""
    if accuracy.models and "int8" not in accuracy.models:
        return ""
    classes = len(accuracy.confusion.int8) or len(accuracy.per_class)
    if classes <= MATRIX_CLASSES and accuracy.confusion.int8:
        return ""
    if classes <= MATRIX_CLASSES:
        return "The confusion matrix is missing in report.json."
    where = "; report.json holds it" if accuracy.confusion.int8 else ""
    of = wording.count(classes, "class", "classes")
    return f"A confusion matrix of {of} would be unreadable, so none is drawn{where}."


def no_latency(report: Report) -> str:
    """Say why there is no latency, with a gate's words where one knows."""
    whys = [gate.why for gate in report.gates if gate.value is None and "latency" in gate.name and gate.why]
    return f"Latency was not measured: {whys[0]}." if whys else "Latency was not measured."


def parity_sentence(parity: Parity) -> str:
    """Say what was compared, and what computed INT8."""
    sentence = "How close the numbers are that come out of two renderings of the same network."
    if parity.int8_vs_fp32.exact:
        sentence += (
            " ONNX Runtime stood for the device's engine: its optimisations that change rounding were off."
        )
    return sentence


def calibration_sentence(calibration: Calibration) -> str:
    """Say what the ranges come from."""
    if calibration.images is None:
        return ""
    how = f", by {calibration.ranges}" if calibration.ranges else ""
    preset = f" (preset {calibration.preset})" if calibration.preset else ""
    come = f"Ranges come from {wording.count(calibration.images, 'training input')}{how}{preset}."
    return f"{come} {_settled(calibration)}".rstrip()


def _settled(calibration: Calibration) -> str:
    """Say how many images were enough, where that was looked at; that none were is one of the warnings."""
    steps, enough = settling(calibration.convergence), calibration.enough_images
    apart = [p95 for images, _, p95 in steps[:-1] if enough is not None and images >= enough]
    if not apart:
        return ""
    return (
        f"{wording.count(enough)} were enough: from there on, 95 of 100 scales stayed within "
        f"{wording.percent(max(apart))} of the final ones."
    )


def noise_sentence(report: Report) -> str:
    """Say which layers hurt, or nothing where that was not looked at."""
    worst = worst_layers(report.layers, 1)
    if not worst:
        return ""
    return (
        "Signal to noise compares each layer's output inside the INT8 network with FP32's, so everything up to "
        f"it counts; 6 dB less is twice the error. Lowest: {short_name(worst[0])}, "
        f"{decibels(worst[0].sqnr_db)}."
    )


def ladder_sentence(quantization: Quantization) -> str:
    """Say what corrections brought, or why there are none."""
    # Attention goes into INT8 for speed, once all corrections are made.
    ladder = [rung for rung in quantization.ladder if rung.rung != "attention"]
    if not ladder:
        return "Corrections were not asked for (quantize.method: plain)." if quantization.method else ""
    if len(ladder) == 1:
        return "Ranges alone met the limits on held-out training inputs, so nothing was corrected."
    kept = [rung for rung in ladder[1:] if rung.kept]
    held, tried = quantization.held_images, wording.count(len(ladder) - 1, "correction")
    on = f" on {wording.count(held, 'held-out training input')}" if held else ""
    were = "was" if len(kept) == 1 else "were"
    came = f"{len(kept)} of {tried} helped{on} and {were} kept" if kept else f"None of {tried} helped{on}"
    first, last = ladder[0].sqnr_db, (kept or ladder)[-1].sqnr_db
    if kept and first is not None and last is not None:
        came += f": signal to noise went from {decibels(first)} to {decibels(last)}"
    took = f"; quantizing took {wording.seconds(quantization.seconds)}" if quantization.seconds else ""
    return f"{came}{took}."


def latency_sentence(report: Report) -> str:
    """Say what was timed, and how much faster INT8 is."""
    latency = report.latency
    if latency is None:
        return no_latency(report)
    where = [latency.engine, f"batch {latency.batch}" if latency.batch else "",
             wording.count(latency.threads, "thread") if latency.threads else "",
             f"preset {latency.preset}" if latency.preset else ""]  # fmt: skip
    measured = ", ".join(filter(None, where))
    speed = latency.speedup
    if speed.value is None:
        return f"Timed on this machine: {measured}." if measured else ""
    span = wording.interval(speed.low, speed.high, "times")
    faster = f"INT8 is {wording.times(speed.value)} as fast as FP32" + (f" ({span})" if span else "")
    return f"{faster}: {measured}." if measured else f"{faster}."


def data_sentence(data: Data) -> str:
    """Say how many images each split has."""
    totals = [f"{wording.count(sum(counts.values()))} {split}" for split, counts in splits(data).items()]
    classes = wording.count(len(data_classes(data)), "class", "classes")
    images = sum(sum(counts.values()) for counts in data.counts.values())
    return f"{wording.count(images, 'input')} in {classes}: {', '.join(totals)}." if totals else ""
