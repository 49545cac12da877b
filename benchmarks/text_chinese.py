"""Trains a BERT of a few layers that reads single characters from random weights, and quantizes it.

    python benchmarks/text_chinese.py waimai_zh.csv --out runs/chinese [--layers 3] [--width 128] [--epochs 8]

The table holds texts and labels in a language without spaces; the vocabulary is its training texts' own characters.
Where a network of the hub may be downloaded, a recipe with `name: hf:google-bert/bert-base-chinese` does better.
Needs the extra `text`. Prints what the run's report says, and the seconds of processor time it took.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig

import edgetune
from edgetune.data.folders import scan
from edgetune.data.texts import text_of
from edgetune.recipe import DataSection

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# A character that stands in fewer training texts is as good as unknown.
LEAST = 3


def main() -> None:
    """Make the network's folder, then run."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("table", type=Path)
    asked.add_argument("--out", type=Path, default=Path("runs/chinese"))
    asked.add_argument("--layers", type=int, default=3)
    asked.add_argument("--width", type=int, default=128)
    asked.add_argument("--length", type=int, default=96)
    asked.add_argument("--epochs", type=int, default=8)
    asked.add_argument("--learning-rate", type=float, default=5e-4)
    given = asked.parse_args()
    section = {"path": str(given.table.absolute()), "task": "text-classification", "test_share": 0.15}
    data = scan(DataSection(**section), given.table)
    texts = [text_of(data.root, sample.path, sample.sha256) for sample in data.splits["train"]]
    folder = given.out / "network"
    folder.mkdir(parents=True, exist_ok=True)
    known = character_tokenizer(texts)
    known.save(str(folder / "tokenizer.json"))
    BertConfig(
        vocab_size=known.get_vocab_size(), hidden_size=given.width, num_hidden_layers=given.layers,
        num_attention_heads=max(1, given.width // 32), intermediate_size=4 * given.width,
        max_position_embeddings=given.length, pad_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    recipe = edgetune.recipe_from(
        {
            "name": "chinese",
            "profile": "host-cpu",
            "data": section,
            "model": {"name": f"hf:{folder.absolute()}", "weights": "none", "length": given.length},
            "finetune": {
                "strategy": "full", "epochs": given.epochs, "batch": 32, "learning_rate": given.learning_rate,
                "patience": 3,
            },
            "quantize": {"preset": "quick"},
        }
    )  # fmt: skip
    began = time.process_time()
    made = edgetune.run(recipe, edgetune.load_target("host-cpu"), given.out)
    accuracy = made.report["accuracy"]["models"]
    print(f"{known.get_vocab_size()} characters, {given.layers} layers of {given.width}, {len(texts)} texts")
    for name, model in accuracy.items():
        print(f"{name}: {100 * model['top1']:.1f}% ({100 * model['low']:.1f} to {100 * model['high']:.1f})")
    print(f"{time.process_time() - began:.0f} s of processor time; {made.out / 'report.html'}")


def character_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a tokenizer of single characters that stand in enough of the texts."""
    counts = Counter(
        character for text in texts for character in set(text.lower()) if not character.isspace()
    )
    kept = sorted(character for character, count in counts.items() if count >= LEAST)
    known = Tokenizer(
        WordLevel({name: index for index, name in enumerate([*SPECIAL, *kept])}, unk_token="[UNK]")
    )
    known.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    known.pre_tokenizer = Split(Regex(r"\S"), "isolated")
    known.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return known


if __name__ == "__main__":
    main()
