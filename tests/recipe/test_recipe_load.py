from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import PRESETS
from hybridnorm.placements import placement
from hybridnorm.recipe.load import builtin, dump_recipe, load_recipe


@pytest.mark.parametrize("name", sorted(builtin()))
def test_every_builtin_recipe_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_overrides_win_over_the_file_and_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('seed = 3\n[model]\npreset = "151M"\nn_layers = 2\n[optimizer]\nlr = 1\n')
    recipe = load_recipe(path, {"model.d_ff": 64, "optimizer.lr": 3e-3, "train.dtype": "bf16"})
    assert (recipe.seed, recipe.model.n_layers, recipe.model.d_ff) == (3, 2, 64)
    assert recipe.model.d_model == PRESETS["151M"].d_model
    assert recipe.optimizer.lr == 3e-3 and recipe.train.dtype == "bf16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]", "modle: unknown field; did you mean 'model'?"),
        ("[model]\nd_modle = 3", "model.d_modle: unknown field; did you mean 'd_model'?"),
        ('[optimizer]\nlr = "fast"', "optimizer.lr: expected a number, got 'fast'"),
        ("[train]\nsteps = 1.5", "train.steps: expected a whole number, got 1.5"),
        (
            "[train]\nasync_checkpoints = 1",
            "train.async_checkpoints: expected true or false, got 1",
        ),
        ("[train]\nsteps = 0", "train.steps: must be at least 1, got 0"),
        ('[train]\ndtype = "fp61"', "train.dtype: unknown value 'fp61'"),
        ("[model]\nn_heads = 3", "model.n_heads: 3 heads do not divide d_model 128"),
        ("[model]\nn_kv_heads = 3", "model.n_kv_heads: 3 key/value heads do not divide n_heads 4"),
        ('[model]\npreset = "151m"', "preset: unknown name '151m'; did you mean '151M'?"),
        (
            "[train]\nmicro_batch_size = 5",
            "train.micro_batch_size: 5 does not divide batch_size 16",
        ),
        ("[train]\nsteps = 5", "schedule.warmup_steps: 100 exceeds train.steps 5"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas: expected 2 values, got 1"),
        ('[optimizer]\nname = "muno"', "optimizer.name: unknown name 'muno'; did you mean 'muon'?"),
        (
            "[optimizer]\nmomentum = 0.9",
            "optimizer.momentum: has no effect with adamw; leave it out",
        ),
        ("[schedule]\ndecay_steps = 9", "schedule.decay_steps: has no effect with cosine"),
        ("[schedule]\ndecay_tokens = 9", "schedule.decay_tokens: has no effect with cosine"),
        (
            '[schedule]\nname = "constant"\nfinal_lr_fraction = 0.0',
            "schedule.final_lr_fraction: has no effect with constant",
        ),
        (
            '[schedule]\nname = "wsd"\ndecay_steps = 901',
            "schedule.decay_steps: 901 and warmup_steps 100 exceed train.steps 1000",
        ),
        (
            '[train]\nsteps = 120\n[schedule]\nname = "wsd"',
            "schedule.decay_steps: 24 and warmup_steps 100 exceed train.steps 120",
        ),
        ("[train]\nkeep_every = 0", "train.keep_every: must be at least 1, got 0"),
        ("[optimizer]\nlr = nan", "optimizer.lr: must be above 0 and below 2^127, got nan"),
        ("lr = 1.0", "lr: unknown field; did you mean 'optimizer.lr'?"),
        ('"optimizer.lr" = 1.0', "optimizer.lr: unknown field; write a dotted name without quotes"),
        ('[data]\nsource = "\\u001b"', "data.source: holds a control character: '\\x1b'"),
        ("[data]\nmin_chars = 9\nmax_chars = 8", "data.min_chars: 9 exceeds max_chars 8"),
        ("seed = 0x" + "f" * 9999, "seed: the number is too large"),
        ("seed = " + "9" * 9999, "is not TOML"),
        ("seed = " + "[" * 9999, "is not TOML"),
        ("seed = ", "is not TOML"),
    ],
)
def test_bad_recipes_name_the_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(HybridNormError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ") or "is not TOML" in message
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lengths_in_tokens_become_steps(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(
        "[train]\ntokens = 100_001\nbatch_tokens = 4096\nseq_len = 512\n"
        '[schedule]\nname = "wsd"\nwarmup_tokens = 8193\ndecay_tokens = 20_000\n'
    )
    recipe = load_recipe(path).in_steps()
    assert (recipe.train.batch_size, recipe.train.steps) == (8, 25)
    assert (recipe.schedule.warmup_steps, recipe.schedule.decay_steps) == (3, 5)
    assert recipe.in_steps() == recipe
    with pytest.raises(HybridNormError, match=r"train\.batch_tokens: 4000 is no multiple"):
        load_recipe(path, {"train.batch_tokens": 4000}).in_steps()
    with pytest.raises(HybridNormError, match="warmup_steps: 49 exceeds"):
        load_recipe(path, {"schedule.warmup_tokens": 200_000}).in_steps()
    with pytest.raises(HybridNormError, match="decay_steps: 23 and warmup_steps 3 exceed"):
        load_recipe(path, {"schedule.decay_tokens": 23 * 4096}).in_steps()


def test_unknown_names_offer_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(HybridNormError, match="did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(HybridNormError, match="cannot read"):
        load_recipe(tmp_path / "missing.toml")
    with pytest.raises(HybridNormError, match=r"^model.placment: .* did you mean 'placement'"):
        load_recipe("demo", {"model.placment": "x"})


@pytest.mark.parametrize("name", ["...toml", ".....toml"])
def test_a_file_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    for load in (load_recipe, placement):
        with pytest.raises(HybridNormError, match=r"has no name before \.toml; rename it"):
            load(tmp_path / name)


def test_a_folder_called_like_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").mkdir()
    for load in (load_recipe, placement):
        with pytest.raises(HybridNormError, match=r"x\.toml: cannot read: Is a directory"):
            load(tmp_path / "x.toml")


def test_empty_names_are_refused() -> None:
    with pytest.raises(HybridNormError, match="recipe: unknown name ''"):
        load_recipe("")
    with pytest.raises(HybridNormError, match="placement: the name is empty; `hybridnorm show`"):
        placement(load_recipe("demo", {"model.placement": ""}).model.placement)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, text in (("recipe", "seed = 3"), ("placement", 'title = "P"')):
        (tmp_path / f"{name}.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_recipe(tmp_path / "recipe.toml").seed == 3
    assert placement(tmp_path / "placement.toml").title == "P"


def test_an_array_may_be_overridden_by_its_one_value() -> None:
    assert load_recipe("demo", {"data.prepared": "sets/demo"}).data.prepared == ("sets/demo",)


def test_a_placement_file_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[attention]\ninput_norm = "rms"\n')
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\nplacement = "mine.toml"\n')
    assert load_recipe(recipe).model.placement == str(tmp_path / "mine.toml")


def test_text_that_prepared_sets_would_hide_is_refused() -> None:
    with pytest.raises(HybridNormError, match=r"data.source: is not read where data.prepared"):
        load_recipe("paper-151M", {"data.source": "mine"})
    found = load_recipe("paper-151M", {"data.source": "mine", "data.prepared": ()})
    assert found.data.source == "mine"
