"""Profiles on the terminal: all of them, one in full, several side by side, and what is wrong with a file.

It knows how things look, not how they are made. It may import profile and terminal.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.profile import JetPack, Mode, Profile, Target
from edgetune.terminal import console, say, show_rows

HEADS = {
    "sms": "SMs", "gpu_mhz": "GPU MHz", "bandwidth_gb_s": "GB/s", "int8_dense_tops": "INT8 TOPS",
    "fp16_dense_tflops": "FP16 TFLOPS", "power_w": "W",
}  # fmt: skip
WORDS = {
    "compute_capability": "compute capability", "memory_gb": "memory, GB", "l2_mb": "L2, MiB",
    "dla_cores": "DLAs", "int8": "INT8 path", "super": "Super mode", "confidence": "figures are", "l4t": "L4T",
    "tensorrt": "TensorRT", "cuda": "CUDA", "python": "Python", "opset_max": "opset at most",
    "opset": "opset exported", "ir": "IR version", "jetpack": "JetPack", **HEADS,
}  # fmt: skip


def show_profiles(profiles: Sequence[Profile]) -> None:
    """List profiles; default mode and JetPack are marked, the peak is the highest of the modes."""
    rows = []
    for profile in profiles:
        modes = " ".join(f"{name}*" if name == profile.default_mode else name for name in profile.modes)
        packs = " ".join(f"{name}*" if name == profile.default_jetpack else name for name in profile.jetpacks)
        memory = "-" if profile.memory_gb is None else f"{profile.memory_gb:g} GB"
        rows.append((profile.name, memory, _peak(profile), _confidences(profile), packs or "-", modes))
    columns = ("profile", "memory", "peak", "figures", "JetPack", "modes")
    show_rows(columns, rows, right=("memory",), wrap=("figures", "JetPack", "modes"))
    out = console()
    out.print(
        "* default; name a target as NAME[:MODE][@JETPACK]. On a desktop, JetPack is a release of TensorRT."
    )
    out.print(
        "Peaks are dense, of the fastest mode. figures: of so many modes are confirmed/derived/unconfirmed."
    )


def _peak(profile: Profile) -> str:
    best = profile.best
    if best.int8_dense_tops:
        return f"{best.int8_dense_tops:g} TOPS INT8"
    return f"{best.fp16_dense_tflops:g} TFLOPS FP16" if best.fp16_dense_tflops else "-"


def _confidences(profile: Profile) -> str:
    given = Counter(mode.confidence for mode in profile.modes.values())
    return next(iter(given)) if len(given) == 1 else ", ".join(f"{n} {kind}" for kind, n in given.items())


def show_target(target: Target) -> None:
    """Show one profile in full, with the chosen mode and JetPack marked."""
    out, profile = console(), target.profile
    out.print(f"{target.label}: {profile.title}, {profile.chip}")
    parts = [
        f"inherits from {profile.extends}" if profile.extends else "",
        f"compute capability {profile.compute_capability}" if profile.compute_capability else "",
        f"{profile.memory_gb:g} GB of memory" if profile.memory_gb else "",
        f"L2 {profile.l2_mb:g} MiB" if profile.l2_mb else "",
        "" if profile.kind == "host" else f"DLAs: {profile.dla_cores or 'none'}",
        "" if profile.int8 else "no INT8 path",
    ]
    out.print("; ".join(part for part in parts if part) or "nothing is known of it beforehand")
    rows = []
    for name, mode in profile.modes.items():
        marked = name + ("*" if name == target.mode else "") + (" (Super)" if mode.super else "")
        rows.append((marked, *_figures(mode), mode.confidence))
    show_rows(("mode", *HEADS.values(), "figures are"), rows, right=tuple(HEADS.values()))
    packs = [
        (
            name + ("*" if name == target.jetpack else ""), pack.tensorrt, pack.cuda, pack.python,
            f"{pack.opset} (of {pack.opset_max})", str(pack.ir), pack.typing, pack.l4t or "-",
            " ".join(pack.modes) or "all",
        )
        for name, pack in profile.jetpacks.items()
    ]  # fmt: skip
    if packs:
        first = "JetPack" if profile.kind == "jetson" else "release"
        columns = (first, "TensorRT", "CUDA", "Python", "opset", "IR", "typing", "L4T", "modes")
        show_rows(columns, packs, wrap=("modes",))
    out.print("sources:")
    for line in _sources(profile):
        say(line.lstrip(), indent=2 + len(line) - len(line.lstrip()))
    if profile.notes:
        out.print(profile.notes)


def _figures(mode: Mode) -> list[str]:
    return [_shown(getattr(mode, figure)) for figure in HEADS]


def _sources(profile: Profile) -> Iterator[str]:
    if profile.source:
        yield f"{profile.name}: {profile.source} ({profile.confidence})"
    entries: dict[str, Mode | JetPack] = {**profile.modes, **profile.jetpacks}
    for name, entry in entries.items():
        yield f"{name}: {entry.source} ({entry.confidence})"
        for figure, source in entry.sources.items() if isinstance(entry, Mode) else ():
            yield f"  {figure}: {source}"


def show_comparison(found: Mapping[str, Any]) -> None:
    """Show targets side by side: what differs, what does not, and all modes by their peak."""
    out = console()
    columns = ("what", *found["targets"])
    rows = [(WORDS.get(row["what"], row["what"]), *map(_shown, row["values"])) for row in found["differs"]]
    show_rows(columns, rows, right=columns[1:]) if rows else out.print("nothing differs")
    same = [f"{WORDS.get(what, what)}: {_shown(value)}" for what, value in found["same"].items()]
    if same:
        say(f"the same in all: {'; '.join(same)}")
    out.print("modes, by their peak:")
    modes = [
        (row["target"], *(_shown(row[figure]) for figure in HEADS), row["confidence"])
        for row in found["modes"]
    ]
    show_rows(("target", *HEADS.values(), "figures are"), modes, right=tuple(HEADS.values()))


def show_complaints(found: Sequence[Mapping[str, Any]]) -> None:
    """Show what is wrong with files of profiles, a line each."""
    out = console()
    for file in found:
        many = len(file["complaints"])
        said = "nothing is wrong with it" if file["valid"] else f"{many} complaint{'' if many == 1 else 's'}"
        out.print(f"{file['file']}: {said}", soft_wrap=True)
        for complaint in file["complaints"]:
            out.print(complaint["text"], soft_wrap=True)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
