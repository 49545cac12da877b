"""What a bundle says of itself: README.txt, and examples or a script beside it.

It may import artifact and profile and, of this folder, by_hand and the program.
"""

import shutil
from pathlib import Path

from edgetune.artifact import TOKENIZER_FILE, How, Tokens
from edgetune.device import by_hand
from edgetune.device.packing import PROGRAM
from edgetune.device.program.plan import RESULTS, WORK_FILE
from edgetune.profile import Target

# For the user to change, and so without digests.
EXAMPLES = ("classify.py", "classify.cpp")
SCALES = "int8.scales.json"
README = """\
This folder builds and measures TensorRT engines on a device. Copy it there, and run in it:

    python3 {program}

It needs Python 3.8 or later and the TensorRT that JetPack brings, nothing else: no network, no root. What was
done before is not done again. Results go to {results}/; bring {results}/ back, beside this folder's {work}.

    python3 {program} --help           all options
    python3 {program} probe            what the device is, and what would spoil a measurement
    python3 {program} --lock-clocks    lock the clocks meanwhile (asks sudo for nvpmodel and jetson_clocks)

{examples}

Made for {label}: {title}, TensorRT {tensorrt}{where}.
"""
OF_IMAGES = """\
classify.py and classify.cpp show how an engine classifies one frame; their first lines say how to run them."""
OF_TEXTS = f"""\
{TOKENIZER_FILE} is the tokenizer, for the application, as the library tokenizers reads it; the samples here are
numbers of tokens already. Texts are cut at {{length}} tokens and filled up with the number {{pad}}{{to}};
attention_mask is 1 where there is text, and 0 behind it."""
# By the bindings, with what trtexec builds instead.
TO_LENGTHS = """ to
the least of {} tokens that holds them: an engine has an optimization profile for each, in this
order; where trtexec built, {} are engines of their own for the shorter ones"""
WITHOUT_QDQ = f"""
This DLA takes no Q/DQ. int8.onnx is the quantized network without, and {SCALES} holds its scales; the program
hands both to TensorRT, which rounds in places of its own. What the INT8 engine should give is what ONNX Runtime
makes of the network with Q/DQ all the same.
"""


def tell(
    folder: Path, target: Target, how: How, samples: int, compared: int, dla_core: int | None, beside: bool
) -> None:
    """Write what tells people how to go on: a text and examples, or a script where the engine is built by hand."""
    if target.no_int8:
        (folder / by_hand.SCRIPT).write_text(by_hand.script(target), encoding="utf-8")
        (folder / by_hand.SCRIPT).chmod(0o755)
        text = by_hand.readme(
            target,
            samples=samples,
            trtexec_samples=compared,
            program=PROGRAM,
            work=WORK_FILE,
        )
    else:
        for name in () if isinstance(how, Tokens) else EXAMPLES:
            shutil.copyfile(Path(__file__).with_name("examples") / name, folder / name)
        text = README.format(
            program=PROGRAM, results=RESULTS, work=WORK_FILE, label=target.label, title=target.profile.title,
            tensorrt=target.runtime.tensorrt, where="" if dla_core is None else f", on DLA {dla_core}",
            examples=_of_texts(how) if isinstance(how, Tokens) else OF_IMAGES,
        )  # fmt: skip
        text += WITHOUT_QDQ if beside else ""
    (folder / "README.txt").write_text(text, encoding="utf-8")


def _of_texts(how: Tokens) -> str:
    lengths = how.lengths if len(how.lengths) > 1 else ()
    names = ", ".join(f"int8-{length}.plan" for length in lengths[:-1])
    to = TO_LENGTHS.format(", ".join(map(str, lengths)), names) if lengths else " to as many"
    return OF_TEXTS.format(length=how.length, pad=how.pad, to=to)
