import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import entropy

from hybridnorm.data.config import DataConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.mixture import Batches, Mixture
from hybridnorm.data.prepare.folder import open_data
from hybridnorm.data.prepared import Prepared, open_prepared, verify
from hybridnorm.errors import HybridNormError

QUIET = Console(quiet=True)
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folders(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets of bytes: the small corpus, and a smaller one of digits and two-byte letters."""
    folder = tmp_path_factory.mktemp("sets")
    lines = [json.dumps({"text": f"{i} zéro " * 12}, ensure_ascii=False) for i in range(80)]
    (folder / "digits.jsonl").write_text("\n".join(lines))
    common = {"tokenizer": "byte", "cache": str(folder / "cache"), "validation_fraction": 0.2}
    sources = (str(corpus), str(folder / "digits.jsonl"))
    made = [open_data(DataConfig(source=s, **common), console=QUIET).folders[0] for s in sources]
    return made[0], made[1]


@pytest.fixture
def copy(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A prepared folder that a test may damage."""
    return Path(shutil.copytree(folders[0], tmp_path / "copy"))


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 500), cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 3))
def test_any_split_into_ranks_and_micro_batches_sees_the_same_rows(
    folders: tuple[Path, Path], step: int, cuts: set[int], seed: int
) -> None:
    batches = Batches(Mixture(Prepared(folders, (2, 1)), "train"), 16, 12, seed)
    ids, targets = batches.rows(step, 0, batches.batch_size)
    edges = [0, *sorted(cuts), 12]
    parts = [batches.rows(step, a, b) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), ids)
    assert np.array_equal(np.concatenate([p[1] for p in parts]), targets)
    assert np.array_equal(ids[:, 1:], targets[:, :-1])


def test_every_window_comes_once_per_epoch_of_its_set(folders: tuple[Path, Path]) -> None:
    batches = Batches(Mixture(Prepared(folders, (1, 3)), "train"), 16, 8, 0)
    drawn = [batches.window_at(position) for position in range(8 * max(batches.n_windows))]
    for part, n in enumerate(batches.n_windows):
        windows = [window for source, window in drawn if source == part]
        assert len(windows) >= n
        first, second = windows[:n], windows[n : 2 * n]
        assert sorted(first) == list(range(n))
        assert first[: len(second)] != second and len(set(second)) == len(second)


def test_each_batch_holds_the_sets_by_weight(folders: tuple[Path, Path]) -> None:
    batches = Batches(Mixture(Prepared(folders, (3, 1)), "train"), 16, 40, 0)
    for step in (0, 1, 1000):
        digits = (
            np.isin(batches.rows(step, 0, batches.batch_size)[0], list(b"0123456789z"))
            .any(axis=1)
            .sum()
        )
        assert digits == 10


def test_without_weights_the_tokens_decide(folders: tuple[Path, Path]) -> None:
    data = open_prepared(folders)
    assert data.weights == tuple(Tokens(folder, "train").n_tokens for folder in folders)
    assert open_prepared(folders, (1, 2)).weights == (1, 2)


def test_held_out_windows_keep_the_proportions(folders: tuple[Path, Path]) -> None:
    mixture = Mixture(Prepared(folders, (3, 1)), "validation")
    ids, targets = mixture.windows(16, 40)
    rows = [tuple(row) for row in ids.tolist()]
    for part, share in zip(mixture.parts, (30, 10), strict=True):
        own = {tuple(part.window(i, 16)[:-1].tolist()) for i in range(part.n_windows(16))}
        assert sum(row in own for row in rows) == share
    assert np.array_equal(ids[:, 1:], targets[:, :-1])
    everything = mixture.windows(16, 10**9)[0]
    n_digits = mixture.parts[1].n_windows(16)
    assert len(everything) in range(4 * n_digits, 4 * n_digits + 4), "the shorter set runs out"
    expected = entropy(np.bincount(targets.ravel()))
    assert mixture.unigram_loss(16, 40) == pytest.approx(expected)


def test_tokens_per_byte_are_those_of_the_mixed_text(folders: tuple[Path, Path]) -> None:
    mixture = Mixture(Prepared(folders, (3, 1)), "validation")
    a, b = (part.tokens_per_byte for part in mixture.parts)
    assert mixture.tokens_per_byte == pytest.approx(4 / (3 / a + 1 / b))
    alone = Mixture(Prepared(folders[:1], (1,)), "validation")
    assert alone.tokens_per_byte == pytest.approx(a)
    assert mixture.end_of_document == 256


def test_the_fingerprint_covers_parts_and_weights(folders: tuple[Path, Path], copy: Path) -> None:
    def of(folders: tuple[Path, ...], *weights: float) -> str:
        return Mixture(Prepared(folders, weights), "train").fingerprint

    a, b = folders
    assert of((a, b), 1, 2) == of((copy, b), 2, 4), "content and proportions, not places"
    different = {of((a,), 1), of((b,), 1), of((a, b), 1, 2), of((a, b), 2, 1), of((b, a), 1, 2)}
    assert len(different) == 5


def test_different_tokenizers_do_not_mix(
    folders: tuple[Path, Path], corpus: Path, tmp_path: Path
) -> None:
    config = DataConfig(source=str(corpus), cache=str(tmp_path), tokenizer_vocab_size=300)
    other = open_data(config, console=QUIET).folders[0]
    mixed = DataConfig(prepared=(str(folders[0]), str(other)))
    with pytest.raises(HybridNormError, match=r"different tokenizers; .*--tokenizer"):
        open_data(mixed, console=QUIET)
    again = DataConfig(source=str(corpus), cache=str(tmp_path / "2"), tokenizer=str(other))
    same = open_data(again, console=QUIET).folders[0]
    mixed = DataConfig(prepared=(str(same), str(other)))
    assert open_data(mixed, console=QUIET).folders == (same, other)


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1.0,), "1 weights for 2 prepared folders"), ((1.0, 0.0), "must be above 0, got 0.0")],
)
def test_wrong_weights(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(HybridNormError, match=message):
        DataConfig(prepared=("a", "b"), weights=weights)


def test_damage_is_named_with_the_remedy(copy: Path) -> None:
    def message() -> str:
        with pytest.raises(HybridNormError) as caught:
            verify(open_data(DataConfig(prepared=(str(copy),)), console=QUIET))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    shard = copy / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2] + b"xx")
    assert f"{shard} is damaged" in message() and "prepare it anew" in message()
    shard.unlink()
    assert f"{shard} is missing" in message()
    shard.write_bytes(content)
    (copy / "tokenizer.byte").write_text("{}")
    assert "tokenizer.byte is damaged" in message()
    (copy / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in message()


def test_ranks_of_a_node_share_the_verification(folders: tuple[Path, Path], copy: Path) -> None:
    data = Prepared((folders[1], copy), (1, 1))
    shard = copy / "validation-00000.bin"
    shard.write_bytes(shard.read_bytes()[::-1])
    finders = []
    for part in range(3):
        try:
            verify(data, part, 3)
        except HybridNormError:
            finders.append(part)
    assert len(finders) == 1


def test_a_sequence_longer_than_the_text(folders: tuple[Path, Path]) -> None:
    tokens = Mixture(open_prepared(folders), "validation")
    with pytest.raises(HybridNormError, match=r"train.seq_len: 100000 is longer than the valid"):
        tokens.windows(100_000, 8)


def test_held_out_text_shorter_than_a_window_is_known_before_the_first_step(
    tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "train.txt").write_text("some text to train on\n" * 400)
    (tmp_path / "validation.txt").write_text("short")
    command = ("train", "demo", *tiny, "--run-dir", tmp_path / "run")
    result = cli(*command, "--data.source", tmp_path, "--data.cache", tmp_path / "cache")
    assert result.returncode == 1
    assert "train.seq_len: 32 is longer than the validation text" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_mixture_and_its_identity(
    folders: tuple[Path, Path], tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    options = zip(tiny[::2], tiny[1::2], strict=True)
    plain = [word for pair in options for word in pair if not pair[0].startswith("--data.")]
    mixed = [*plain, "--run-dir", tmp_path / "run", "--data.prepared", *folders, "--data.weights"]
    result = cli("train", "demo", *mixed, "3", "1")
    assert result.returncode == 0, result.stderr
    assert "held-out loss" in result.stdout
    result = cli("train", "demo", *mixed, "1", "1", "--resume")
    assert result.returncode == 1 and "other data" in result.stderr
