"""Networks that read texts: their families, what is refused, and that filling changes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from textual import tiny_bert

from edgetune.artifact import Tokens
from edgetune.errors import ArtifactError, ConfigError, MissingTool
from edgetune.models import build_model, model_row, operations, preprocess_for
from edgetune.models.text import TextNet, encoder_state
from edgetune.models.weights import read_state

transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")


def tokens(*texts: list[int], length: int) -> torch.Tensor:
    made = torch.zeros(len(texts), 2, length, dtype=torch.int64)
    for row, text in zip(made, texts, strict=True):
        row[0, : len(text)] = torch.tensor(text)
        row[1, : len(text)] = 1
    return made


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_each_family_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    folder = tiny_bert(tmp_path / kind, kind)
    net = build_model(f"hf:{folder}", 3).eval()
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    # RoBERTa counts positions by what fills, so that number must stand there.
    given = tokens([2, 5, 6, 7, 3], [2, 8, 3], length=9)
    with torch.no_grad():
        hidden = theirs(input_ids=given[:, 0], attention_mask=given[:, 1]).last_hidden_state
        mask = given[:, 1, :, None]
        wanted = net.get_submodule("head")((hidden * mask).sum(1) / mask.sum(1))
        found = net(given)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        # A text alone, not filled up, gives the same.
        torch.testing.assert_close(net(tokens([2, 8, 3], length=3)), found[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_head_and_groups_hold_every_parameter(tmp_path: Path, kind: str) -> None:
    row = model_row(f"hf:{tiny_bert(tmp_path / kind, kind)}")
    net = row.build(2)
    assert len(row.groups) == 3
    for name, _ in net.named_parameters():
        owners = [
            group for group in (*row.groups, (row.head,)) if any(name.startswith(f"{p}.") for p in group)
        ]
        assert len(owners) == 1, name


def test_length_is_checked(bert: Path) -> None:
    own = preprocess_for(f"hf:{bert}", 3)
    assert isinstance(own, Tokens)
    assert (own.length, own.lengths) == (40, (40,))
    assert preprocess_for(f"hf:{bert}", 3, length=16).lengths == (16,)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="takes 3 to 40 tokens, not 41"):
        preprocess_for(f"hf:{bert}", 3, length=41)


def test_operations_are_those_of_its_matrices(bert: Path) -> None:
    how = preprocess_for(f"hf:{bert}", 3, length=10)
    # Per token 4 products of 32 x 32 and 2 of 32 x 64, in two layers; the head once.
    assert operations(build_model(f"hf:{bert}", 3), how) == 10 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 3 * 32


def test_weights_of_a_network_with_another_head_are_taken(tmp_path: Path, bert: Path) -> None:
    state = read_state(bert / "model.safetensors")
    nested = {f"bert.{name}": t for name, t in state.items()} | {"cls.predictions.bias": torch.zeros(17)}
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in nested.items()
    }
    plain = encoder_state(state, "bert")
    for other in (nested, old, plain):
        assert encoder_state(other, "bert").keys() == plain.keys()
    net = build_model(f"hf:{bert}", 2)
    own = net.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(own[name], tensor)
    del tmp_path


def test_pickled_weights_alone_are_refused_with_a_way_that_works(bert: Path) -> None:
    wanted = build_model(f"hf:{bert}", 2).state_dict()
    torch.save(read_state(bert / "model.safetensors"), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"\(pytorch_model.bin\) are refused") as caught:
        build_model(f"hf:{bert}", 2)
    assert isinstance(build_model(f"hf:{bert}", 2, weights="none"), TextNet)
    # What the hint says, word by word.
    code = re.search(r'python -c "(.*)"', caught.value.hint)
    assert code
    exec(code[1], {})
    found = build_model(f"hf:{bert}", 2).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    for left in ("model.safetensors", "pytorch_model.bin"):
        (bert / left).unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors$"):
        build_model(f"hf:{bert}", 2)


def test_a_tokenizer_of_another_network_is_refused(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"vocab_size": 12}))
    with pytest.raises(ArtifactError, match="the tokenizer has 17 entries, the network knows 12"):
        model_row(f"hf:{bert}")


def test_other_networks_and_folders_are_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config.json there"):
        model_row(f"hf:{tmp_path}")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="a 'gpt2' network") as caught:
        model_row(f"hf:{bert}")
    assert "distilbert" in caught.value.hint
    (bert / "config.json").write_text("{}")
    with pytest.raises(ConfigError):
        model_row(f"hf:{bert}")
    (bert / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(ArtifactError, match="not a multiple of the number of attention heads"):
        build_model(f"hf:{bert}", 2)
    (bert / "tokenizer.json").unlink()
    with pytest.raises(
        ArtifactError, match=r"no tokenizer.json, and none can be made of .*: there is no vocab"
    ):
        model_row(f"hf:{bert}")


def test_a_tokenizer_is_made_of_a_vocabulary(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    (bert / "tokenizer_config.json").unlink(missing_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "##ly"]
    (bert / "vocab.txt").write_text("\n".join(words) + "\n")
    how = model_row(f"hf:{bert}").preprocess
    assert isinstance(how, Tokens)
    from edgetune.data.tokens import encode

    assert [ids.tolist() for ids in encode(["Goodly bad"], how).ids] == [[2, 5, 7, 6, 3]]


def test_where_a_sentence_encoder_says_first_token_it_is(bert: Path) -> None:
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    first = build_model(f"hf:{bert}", 3, seed=1).eval()
    (bert / "1_Pooling" / "config.json").unlink()
    mean = build_model(f"hf:{bert}", 3, seed=1).eval()
    given = tokens([2, 5, 6, 3], length=4)
    with torch.no_grad():
        assert not np.allclose(first(given), mean(given))


def test_a_student_keeps_some_of_the_layers(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "deep", layers=6)
    whole, half = build_model(f"hf:{folder}", 2).state_dict(), build_model(f"hf:{folder}#3", 2).state_dict()
    assert len(model_row(f"hf:{folder}#3").groups) == 4
    for mine, theirs in ((0, 0), (1, 2), (2, 4)):
        name = "encoder.encoder.layer.{}.output.dense.weight"
        torch.testing.assert_close(half[name.format(mine)], whole[name.format(theirs)])
    torch.testing.assert_close(
        half["encoder.embeddings.word_embeddings.weight"], whole["encoder.embeddings.word_embeddings.weight"]
    )
    for wrong in ("0", "7", "x"):
        with pytest.raises(ConfigError, match="it has 6 layers"):
            model_row(f"hf:{folder}#{wrong}")


def test_without_transformers_it_is_said_how_to_get_it(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingTool, match="need the library transformers") as caught:
        model_row(f"hf:{bert}")
    assert "edgetune[text]" in caught.value.hint


@pytest.mark.slow
def test_nothing_imports_transformers_before_it_is_needed() -> None:
    code = (
        "import sys, edgetune.pipeline, edgetune.stages.finetune, edgetune.stages.export, edgetune.models.text\n"
        "sys.exit([name for name in ('transformers', 'tokenizers') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
