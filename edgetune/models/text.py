"""A row for a network of transformers that reads texts: BERT, MiniLM, DistilBERT, RoBERTa, by name or folder.

transformers is an optional extra. No code of a hub's repository ever runs, and no weights are unpickled. It may
import errors, artifact and learning.
"""

import atexit
import copy
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.artifact import TEXT_EXTRA, TOKENIZER_FILE, Tokens, load_tokenizer, sha256_of
from edgetune.errors import ArtifactError, ConfigError, MissingTool
from edgetune.learning import HF, folder_in
from edgetune.models.rows import ModelRow
from edgetune.models.weights import read_state

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
# Where a family's layers are, below its encoder.
FAMILIES = {
    "bert": "encoder.layer",
    "distilbert": "transformer.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
# Tokens of the longest input, where nobody says: as many as sentence encoders are trained with.
LENGTH = 128
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What is added to the attention of what only fills. exp() makes 0 of it, and FP16 holds it.
MASKED = -1e4


# Share of the usual learning rates: published recipes fine-tune BERT at 2e-5 to 5e-5 (arXiv:1810.04805, A.3), where
# convolutional networks take 1e-3; small ones (MiniLM) take more.
RATE = 0.1


class TextNet(nn.Module):
    """An encoder, the mean over a text's tokens, and a linear head.

    Attributes:
        config: of the encoder, as transformers writes it.
    """

    def __init__(
        self, encoder: nn.Module, width: int, classes: int, drop: float, config: str, first: bool
    ) -> None:
        """Put an encoder under a new head.

        Args:
            encoder: gives hidden states [N, L, width].
            width: of them.
            classes: of the head.
            drop: share of the features that are dropped in training.
            config: of the encoder.
            first: the first token stands for the text, instead of the mean.
        """
        super().__init__()
        self.encoder = encoder
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, classes)
        self.config = config
        self._first = first
        self._kinds = hasattr(encoder.embeddings, "token_type_embeddings")

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [N, K] of numbers and masks of tokens [N, 2, L]."""
        return self.split(tokens[:, 0], tokens[:, 1])

    def split(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits of numbers [N, L] and masks [N, L], as the exported file takes them."""
        mask = attention_mask.to(self.head.weight.dtype)
        # Left out, encoders look their kind up by an operator that TensorRT lacks in older versions.
        kinds = {"token_type_ids": torch.zeros_like(input_ids)} if self._kinds else {}
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=((1 - mask) * MASKED)[:, None, None, :], **kinds
        ).last_hidden_state
        if self._first:
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.head(self.drop(pooled))
        return logits


class Inputs(nn.Module):
    """A network that takes numbers and masks apart."""

    def __init__(self, net: TextNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits [N, K]."""
        return self.net.split(input_ids, attention_mask)


@dataclass(frozen=True)
class _Source:
    """What a folder or the hub says of a network."""

    config: Any
    folder: Path
    first: bool


def text_row(name: str) -> ModelRow:
    """Make the row of a network that reads texts.

    Args:
        name: a folder where it begins with `.`, `/` or `~`, else a repository of the hub; with `#3` behind, a
            network of three of its layers, evenly spread (as DistilBERT began: arXiv:1910.01108, section 3).

    Raises:
        MissingTool: transformers is not installed, or the hub is not reached.
        ConfigError: no such folder, or another kind of network.
        ArtifactError: no tokenizer, or one that does not fit.
    """
    name, _, fewer = name.partition("#")
    source = _source(name)
    config = source.config
    kind = config.model_type
    if kind not in FAMILIES:
        raise ConfigError(f"{HF}{name}: a {kind!r} network", hint=f"known are {', '.join(FAMILIES)}")
    kept = _kept_layers(name, fewer, config.num_hidden_layers)
    config.num_hidden_layers = layers = len(kept)
    at = f"encoder.{FAMILIES[kind]}"
    return ModelRow(
        build=lambda classes: _build(source, classes),
        head="head",
        stems=(),
        groups=(("encoder.embeddings",), *((f"{at}.{index}",) for index in range(layers))),
        preprocess=_tokens(source, name),
        weights=f"{HF}{name}",
        fetch=lambda: _fetch(name, source, kept),
        source="Hugging Face hub; licence: see its page" if not folder_in(HF + name) else "a folder",
        int8="LayerNorm, Softmax and GELU stay in float; outliers between LayerNorm and the products that follow "
        "are smoothed (arXiv:2211.10438)",
        classes=2,
        rate=RATE,
        most=_longest(config),
    )


def _kept_layers(name: str, fewer: str, layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers that a network keeps; all of them where nothing is said."""
    count = int(fewer) if fewer.isdecimal() else layers if not fewer else 0
    if not 1 <= count <= layers:
        raise ConfigError(
            f"{HF}{name}#{fewer}: it has {layers} layers", hint=f"#1 to #{layers}, or no # at all"
        )
    return tuple(index * layers // count for index in range(count))


def _longest(config: Any) -> int:
    """Return how many tokens a network takes at most; RoBERTa counts from behind the number that fills."""
    return int(
        config.max_position_embeddings - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingTool("texts need the library transformers", hint=TEXT_EXTRA) from error
    # Before, BERT took no mask that is ready to be added.
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise MissingTool(
            f"texts need transformers 5 or newer, here is {transformers.__version__}", hint=TEXT_EXTRA
        )
    speech: Any = transformers.utils.logging
    speech.set_verbosity_error()
    speech.disable_progress_bar()
    return transformers


def _source(name: str) -> _Source:
    transformers = _transformers()
    if folder_in(HF + name):
        folder = Path(name).expanduser()
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(
                f"{HF}{name}: no {CONFIG_FILE} there", hint="name a folder that save_pretrained wrote"
            )
    else:
        folder = _downloaded(name)
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{HF}{name}: {str(error).splitlines()[0]}") from error
    # Written out as products and Softmax, which exporters, quantizers and TensorRT know.
    config._attn_implementation = "eager"
    return _Source(config, folder, _first_token(folder))


@cache
def _downloaded(name: str) -> Path:
    """Return the folder of a repository in the hub's cache, fetched where it is not there; nothing pickled is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "vocab.txt", "merges.txt", "*.model", WEIGHTS_FILE]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError as error:
        raise ConfigError(f"{HF}{name}: {error}", hint="hf:OWNER/NAME, or hf:./FOLDER") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingTool(
            f"{HF}{name} is not in the cache and cannot be downloaded: {str(error).splitlines()[0]}",
            hint=f"on a machine that reaches it: hf download {name} --local-dir FOLDER; then name that: hf:./FOLDER",
        ) from error


def _first_token(folder: Path) -> bool:
    """Whether the network was trained with the first token for the whole text, as sentence encoders note it."""
    try:
        found = json.loads((folder / "1_Pooling" / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(isinstance(found, dict) and found.get("pooling_mode_cls_token"))


def _build(source: _Source, classes: int) -> nn.Module:
    config = copy.deepcopy(source.config)
    kwargs = {} if config.model_type == "distilbert" else {"add_pooling_layer": False}
    try:
        encoder = _transformers().AutoModel.from_config(config, trust_remote_code=False, **kwargs)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"{source.folder / CONFIG_FILE}: {str(error).splitlines()[0]}", hint="get the network again"
        ) from error
    drop = getattr(config, "hidden_dropout_prob", getattr(config, "dropout", 0.1))
    width = config.hidden_size
    return TextNet(encoder, width, classes, drop, config.to_json_string(), source.first)


def _tokens(source: _Source, name: str) -> Tokens:
    folder, config = source.folder, source.config
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        file = _converted(folder, name)
    entries = int(load_tokenizer(file).get_vocab_size(with_added_tokens=True))
    if entries > config.vocab_size:
        raise ArtifactError(
            f"{HF}{name}: the tokenizer has {entries} entries, the network knows {config.vocab_size}",
            hint="they do not belong together: take both from one place",
        )
    length = min(LENGTH, _longest(config))
    return Tokens(
        kind="text", length=length, lengths=(length,), pad=config.pad_token_id or 0,
        tokenizer=sha256_of(file), folder=file.parent,
    )  # fmt: skip


@cache
def _converted(folder: Path, name: str) -> Path:
    """Write a tokenizer.json of an older folder's vocabulary, where it stays until the process ends."""
    try:
        # Of nothing, transformers makes a tokenizer that knows nothing.
        if not any(next(folder.glob(pattern), None) for pattern in ("vocab.*", "*.model")):
            raise FileNotFoundError("there is no vocabulary")
        found = _transformers().AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False
        )
        content = found.backend_tokenizer.to_str()
    # transformers reaches its tokenizers through several libraries that share no error of their own.
    except Exception as error:
        raise ArtifactError(
            f"{HF}{name}: no {TOKENIZER_FILE}, and none can be made of what is there: {str(error).splitlines()[0]}",
            hint="put the tokenizer that the network was trained with beside its weights",
        ) from error
    file = Path(tempfile.mkdtemp(prefix="edgetune-")) / TOKENIZER_FILE
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    file.write_text(content, encoding="utf-8")
    return file


def check_weights(name: str) -> None:
    """Refuse a network whose weights cannot be read, before anything else learns for an hour.

    Args:
        name: as of a recipe, `hf:` in front.

    Raises:
        EdgetuneError: as `text_row`; or there are no weights, or pickled ones alone.
    """
    bare = name.removeprefix(HF).partition("#")[0]
    _weights(bare, _source(bare).folder)


def _weights(name: str, folder: Path) -> Path:
    """Return the file of weights in a network's folder."""
    file = folder / WEIGHTS_FILE
    if file.is_file():
        return file
    pickled = next((one for one in PICKLED if (folder / one).is_file()), "")
    if folder_in(HF + name) and not pickled:
        raise ArtifactError(
            f"{HF}{name}: no {WEIGHTS_FILE}", hint="model.weights: none trains from random weights"
        )
    # Nothing pickled is downloaded: of a repository, that is left to the user.
    where = str(folder) if pickled else "NEW"
    convert = (
        f"from transformers import AutoModel as A; A.from_pretrained('{where}').save_pretrained('{where}')"
    )
    steps = ["where you trust them, convert them:", f'python -c "{convert}"']
    if not pickled:
        steps = [steps[0], f"hf download {name} --local-dir NEW", steps[1], "then name that folder: hf:./NEW"]
    raise ArtifactError(
        f"{HF}{name}: no {WEIGHTS_FILE}; pickled weights{f' ({pickled})' * bool(pickled)} are refused, as reading "
        "them could run foreign code",
        hint="\n".join(steps),
    )


def _fetch(name: str, source: _Source, kept: tuple[int, ...]) -> dict[str, Tensor]:
    state, kind = read_state(_weights(name, source.folder)), source.config.model_type
    return _renumbered(encoder_state(state, kind), f"encoder.{FAMILIES[kind]}.", kept)


def _renumbered(state: dict[str, Tensor], at: str, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the tensors of the layers that are kept, counted anew, and all that are of no layer."""
    found = {}
    for name, tensor in state.items():
        number, dot, rest = name.removeprefix(at).partition(".")
        if not name.startswith(at):
            found[name] = tensor
        elif int(number) in kept:
            found[f"{at}{kept.index(int(number))}{dot}{rest}"] = tensor
    return found


def encoder_state(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return an encoder's tensors by the names that they have in a `TextNet`; heads and poolers are left out."""
    # Under another head, of a checkpoint of edgetune, or bare.
    prefix = "roberta." if "roberta" in kind else f"{kind}."
    prefix = "encoder." if any(name.startswith("encoder.embeddings.") for name in state) else prefix
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    keep = ("embeddings.", f"{FAMILIES[kind].split('.')[0]}.")
    # Older files name LayerNorm's parameters as TensorFlow does.
    renamed = {
        name.replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in inner.items()
        if name.startswith(keep) and not name.endswith("position_ids")
    }
    return {f"encoder.{name}": tensor for name, tensor in renamed.items()}
