"""Placements by name: the table, the paper's grammar, files."""

from itertools import permutations
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.placements import placement, strategies
from hybridnorm.placements.spec import Norm

ASKED_FOR = {
    "pre-norm",
    "post-norm",
    "pre-norm-qk",
    "hybridnorm",
    "hybridnorm-star",
    "hybridnorm-star-7b",
    "hybridnorm-scaled",
    "mix-ln",
    "deepnorm",
    "sandwich-ln",
    "peri-ln",
    "olmo2",
    "lns",
    "subln",
    "normformer",
    "keel",
    "b2t",
    "spannorm",
    "first-qkv-pre",
    "embed-norm",
    "dssn",
    "gemma",
    "gemma-v",
    "no-norm",
    "dyt",
    "derf",
    "pre-post",
    "post-pre",
}


def test_the_table_has_what_was_asked_for_and_says_where_it_is_from() -> None:
    assert set(strategies()) >= ASKED_FOR
    assert all(found.title and found.source for found in strategies().values())


def test_aliases_are_unique_and_no_names() -> None:
    aliases = [alias for found in strategies().values() for alias in found.aliases]
    assert len({*aliases, *strategies()}) == len(aliases) + len(strategies())
    assert placement("qkv-post") is placement("hybridnorm")
    assert placement("hybridnorm*") is placement("hybridnorm-star")
    # As the paper writes them.
    assert placement("HybridNorm*") is placement("hybridnorm-star")
    assert placement("Pre-QKVC-Post") == placement("pre-qkvc-post")


GRAMMAR = [
    (pre, "".join(letters), end)
    for count in range(1, 5)
    for letters in permutations("qkvc", count)
    for pre in ("", "pre-")
    for end in ("post", "pre")
]


def test_every_name_of_the_grammar_means_what_the_paper_says() -> None:
    for pre, letters, end in GRAMMAR:
        block = placement(f"{pre}{letters}-{end}").block(0, 2)
        attention = block.attention
        inner = {
            "q": attention.q_norm,
            "k": attention.k_norm,
            "v": attention.v_norm,
            "c": attention.context_norm,
        }
        assert {letter for letter, norm in inner.items() if norm == Norm()} == set(letters)
        assert attention.input_norm == (Norm() if pre else None)
        assert attention.skip == "raw"
        assert block.feed_forward.input_norm == Norm()
        assert block.feed_forward.skip == {"post": "normed", "pre": "raw"}[end]


@pytest.mark.parametrize(
    "name",
    ["qq-post", "qkx-post", "-post", "pre-", "pre--post", "qkv", "qkv-mid", "post-qkv",
     "post-qkv-post", "qkvcq-pre", "pre-qkv-post ", ""],
)  # fmt: skip
def test_what_is_not_in_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(HybridNormError, match=r"placement: (unknown name|the name is empty)"):
        placement(name)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(HybridNormError, match="did you mean 'hybridnorm-star'"):
        placement("hybridnorm-stra")


def test_a_users_file_says_the_same_as_the_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'attention = { input_norm = "rms", branch_scale = 0.22 }\n'
        "[feed_forward]\n"
        'input_norm = { kind = "layer", gain_init = { depth_power = -0.5 } }\n'
        "[[overrides]]\n"
        'layers = "first"\n'
        'attention = { input_norm = "none" }\n'
    )
    mine = placement(path)
    assert mine.name == "mine"
    assert mine == placement(str(path))
    assert mine.attention.branch_scale.at(5, 9, 64) == 0.22
    norm = mine.block(3, 9).feed_forward.input_norm
    assert norm is not None
    assert norm.kind == "layer"
    assert norm.gain_init.at(3, 9, 64) == pytest.approx(1 / 3)
    assert mine.block(0, 9).attention.input_norm is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'attention = { input_nrom = "rms" }', "attention.input_nrom: unknown field; did you"),
        (b"attention = ", "is not TOML"),
        (b'title = "\xff"', "is not UTF-8"),
        (None, "cannot read"),
    ],
)
def test_a_broken_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HybridNormError) as caught:
        placement(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_placement(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(HybridNormError, match="cannot read"):
        placement(tmp_path / "folder.toml")
