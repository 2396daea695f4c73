"""Perplexity against a plain loop over tokens."""

import json
import math
from pathlib import Path

import pytest

from candidates import log_likelihoods, run_model, text
from command_line import Cli
from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate import score_texts
from hybridnorm.evaluate.text import ratio

TEXTS = [text(0, 3), text(1, 40), "", text(2, 90), "Übergröße", "x"]


def plain_nats(document: str, window: int, stride: int) -> float:
    """A token at a time, each after the tokens that its window holds."""
    candidate = run_model()
    tokens = [256, *document.encode()]
    nats, done = 0.0, 1
    while done < len(tokens):
        end = min(done + (stride if done > 1 else window), len(tokens))
        first = max(0, end - 1 - window)
        nats -= sum(log_likelihoods(candidate.model, tokens[first:end], end - done, 257))
        done = end
    return nats


@pytest.mark.parametrize("stride", [64, 20, 7])
def test_against_a_plain_loop(stride: int) -> None:
    found = score_texts(run_model(), "x", TEXTS, stride=stride)
    documents = [document for document in TEXTS if document]
    nats = [plain_nats(document, 64, stride) for document in documents]
    sizes = [len(document.encode()) for document in documents]
    assert (found.documents, found.tokens, found.bytes) == (5, sum(sizes), sum(sizes))
    per_token = sum(nats) / sum(sizes)
    assert found.nats_per_token.value == pytest.approx(per_token, abs=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(per_token), rel=1e-5)
    assert found.bits_per_byte.value == pytest.approx(per_token / math.log(2), abs=1e-5)


def test_no_number_depends_on_batches() -> None:
    together = score_texts(run_model(), "x", TEXTS, batch_tokens=8192)
    apart = score_texts(run_model(), "x", TEXTS, batch_tokens=1)
    assert together.nats_per_token.value == pytest.approx(apart.nats_per_token.value, abs=1e-6)
    short, long = (score_texts(run_model(), "x", [TEXTS[i]]) for i in (0, 3))
    both = score_texts(run_model(), "x", [TEXTS[0], TEXTS[3]])
    alone = sum(one.nats_per_token.value * one.tokens for one in (short, long))
    assert both.nats_per_token.value * both.tokens == pytest.approx(alone, abs=1e-3)


def test_the_standard_error_is_what_resampled_documents_show() -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 200, 400).astype(float)
    nats = tokens * (3 + draw.normal(0, 0.5, 400)) + draw.normal(0, 5, 400)
    picks = draw.integers(400, size=(4000, 400))
    resampled = nats[picks].sum(1) / tokens[picks].sum(1)
    assert ratio(list(nats), list(tokens)).error == pytest.approx(resampled.std(), rel=0.06)
    assert ratio([2.0], [1.0]).error is None


def test_equal_documents_leave_no_error() -> None:
    assert score_texts(run_model(), "x", ["abc"] * 4).nats_per_token.error == pytest.approx(0)


@pytest.mark.parametrize(
    ("texts", "stride", "message"),
    [
        (["", ""], None, "x: holds no text"),
        ([], None, "x: holds no text"),
        (["a"], 65, "stride: must lie between 1 and the window of 64 tokens, got 65"),
        (["a"], 0, "stride: must lie between 1"),
    ],
)
def test_bad_texts(texts: list[str], stride: int | None, message: str) -> None:
    with pytest.raises(HybridNormError, match=message):
        score_texts(run_model(), "x", texts, stride=stride)


@pytest.fixture(scope="module")
def run_dir(tiny: list[str], cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    own = ["--data.cache", folder.parent / "prepared"]  # where no other test prepares
    result = cli("train", *tiny, *own, "--run-dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_run_on_files_and_on_its_own_held_out_text(
    run_dir: Path, cli: Cli, tmp_path: Path
) -> None:
    [prepared] = (run_dir.parent / "prepared").glob("*/manifest.json")
    short = tmp_path / "short.txt"
    short.write_text("the norm")  # shorter than one window
    out = tmp_path / "deep" / "found.json"
    result = cli("evaluate", run_dir, "--text", short, prepared.parent, "--out", out)
    assert result.returncode == 0, result.stderr
    of_short, held_out = json.loads(out.read_text())["texts"]
    assert (of_short["documents"], of_short["tokens"]) == (1, 8)
    manifest = json.loads(prepared.read_text())["splits"]["validation"]
    assert (held_out["documents"], held_out["bytes"]) == (
        manifest["documents"],
        manifest["text_bytes"],
    )
    assert f"{held_out['perplexity']['value']:.4f} ± " in result.stdout


def test_a_run_and_its_export_read_the_same(run_dir: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the norm<|endoftext|>of a block <|endoftext|>")
    assert cli("export", run_dir, "--to", tmp_path / "model").returncode == 0
    found = []
    for model in (run_dir, tmp_path / "model"):
        words = ("--text", tmp_path / "a.txt", "--trust-remote-code", "--out", tmp_path / "o.json")
        result = cli("evaluate", model, *words)
        assert result.returncode == 0, result.stderr
        found += json.loads((tmp_path / "o.json").read_text())["texts"]
    assert [one["tokens"] for one in found] == [45, 45]  # its bytes
    nats = [one["nats_per_token"]["value"] for one in found]
    assert nats[0] == pytest.approx(nats[1], abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "evaluate: name a --text or some --tasks"),
        (["--text", "no-such.txt"], "no-such.txt does not exist"),
        (["--text", "{empty}"], "empty.txt: holds no text to score"),
        (["--text", "{bad}"], "line 2: not a JSON object"),
        (["--text", "{empty}", "--checkpoint", "7"], "has no checkpoint '7'"),
        (["--text", "{empty}", "--batch-tokens", "0"], "batch_tokens: must be at least 1, got 0"),
        (
            ["--text", "{empty}", "--stride", "99"],
            "stride: must lie between 1 and the window of 32",
        ),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, run_dir: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text\n')
    named = {"empty": tmp_path / "empty.txt", "bad": tmp_path / "bad.jsonl"}
    result = cli("evaluate", run_dir, *(word.format(**named) for word in argv))
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_neither_a_run_nor_a_folder_of_hugging_face(cli: Cli, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        result = cli("evaluate", folder, "--text", "x.txt")
        assert result.returncode == 1 and "neither a run" in result.stderr


def test_a_damaged_checkpoint_and_another_tokenizer(
    run_dir: Path, cli: Cli, tmp_path: Path
) -> None:
    import shutil

    from hybridnorm.data.tokenizer import train_bpe

    (tmp_path / "a.txt").write_text("the norm")
    copy = shutil.copytree(run_dir, tmp_path / "damaged")
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    for file in newest.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    step = newest.name.removeprefix("step-").lstrip("0")
    result = cli("evaluate", copy, "--text", tmp_path / "a.txt", "--checkpoint", step)
    assert result.returncode == 1 and newest.name in result.stderr, result.stderr
    other = shutil.copytree(run_dir, tmp_path / "other")
    (other / "tokenizer.byte").unlink()
    train_bpe([text(seed, 40) for seed in range(9)], 300).save(other)
    result = cli("evaluate", other, "--text", tmp_path / "a.txt")
    assert result.returncode == 1 and "tokens, the model 257" in result.stderr, result.stderr
