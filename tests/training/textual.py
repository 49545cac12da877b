"""A tiny BERT of random weights with a tokenizer of a few words, and texts that it can learn to tell apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = ("good", "tasty", "fast", "warm", "bad", "cold", "slow", "stale", "the", "food", "was", "and", "very")


def tiny_bert(folder: Path, kind: str = "bert", seed: int = 0, layers: int = 2, **more: Any) -> Path:
    """A folder with a BERT (or another kind) of random weights and a tokenizer of a few words."""
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
    known = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = {"vocab_size": len(names), "max_position_embeddings": 40, "pad_token_id": 0}
    if kind == "distilbert":
        sizes |= {"dim": 32, "n_layers": layers, "n_heads": 2, "hidden_dim": 64}
    else:
        sizes |= {
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **sizes | more)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    known.save(str(folder / "tokenizer.json"))
    return folder


def write_reviews(path: Path, count: int = 120) -> Path:
    """A table of texts in two classes, which a tiny network can tell apart by their words."""
    dice = np.random.default_rng(0)
    rows = ["text,label"]
    for index in range(count):
        own = WORDS[4 * (index % 2) : 4 * (index % 2) + 4]
        words = [*dice.choice(own, 2), *dice.choice(WORDS[8:], dice.integers(1, 8))]
        rows.append(f"{' '.join(dice.permutation(words))},{('positive', 'negative')[index % 2]}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
