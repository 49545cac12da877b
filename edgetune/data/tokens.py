"""From texts to numbers of tokens, cut and filled up: the one implementation that there is.

Training, calibration, checking, bundles and prediction all come here, so they cannot disagree. `tokenizers`, which
the extra `text` brings, is imported when it is used. It knows no network. It may import errors, artifact, and
data.folders and data.texts.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetune.artifact import Tokens, load_tokenizer, sha256_of
from edgetune.data.folders import Sample
from edgetune.data.texts import text_of
from edgetune.errors import ArtifactError

# Of a batch: numbers of tokens, and which of them are text.
IDS, MASK = 0, 1


class Encoded(NamedTuple):
    """Texts as numbers of tokens.

    Attributes:
        ids: of each text, int32, with its marks of beginning and end.
        cut: of each text, whether it was longer than the limit.
    """

    ids: list[NDArray[np.int32]]
    cut: list[bool]


def encode(texts: Sequence[str], how: Tokens) -> Encoded:
    """Turn texts into numbers of tokens, at most `how.length` of each.

    Raises:
        MissingTool: the extra `text` is not installed.
        ArtifactError: the tokenizer's file is not the one that belongs to the network.
    """
    tokenizer = _tokenizer(how.file, how.tokenizer, how.length)
    found = tokenizer.encode_batch(list(texts))
    return Encoded([np.array(one.ids, np.int32) for one in found], [bool(one.overflowing) for one in found])


def read_tokens(root: Path, samples: Sequence[Sample], how: Tokens) -> Encoded:
    """Read samples' texts and turn them into numbers of tokens.

    Raises:
        ConfigError: a text is not there any more.
    """
    return encode([text_of(root, sample.path, sample.sha256) for sample in samples], how)


def filled(ids: Sequence[NDArray[np.int32]], pad: int, length: int = 0) -> NDArray[np.int64]:
    """Fill texts up to one length and say which tokens are text: [N, 2, length], see `IDS` and `MASK`.

    Args:
        ids: of each text.
        pad: what fills.
        length: 0: that of the longest text.
    """
    length = length or max(map(len, ids))
    made = np.zeros((len(ids), 2, length), np.int64)
    made[:, IDS] = pad
    for row, own in zip(made, ids, strict=True):
        row[IDS, : len(own)] = own
        row[MASK, : len(own)] = 1
    return made


def bucket(tokens: int, how: Tokens) -> int:
    """Return the least length that holds so many tokens."""
    return next(length for length in how.lengths if length >= min(tokens, how.length))


@lru_cache(maxsize=8)
def _tokenizer(file: Path, sha256: str, length: int) -> Any:
    """Load a tokenizer that cuts and does not fill, whatever its file says."""
    tokenizer = load_tokenizer(file)
    if sha256_of(file) != sha256:
        raise ArtifactError(
            f"{file}: is not the tokenizer that the network was trained with", hint="restore it"
        )
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return tokenizer
