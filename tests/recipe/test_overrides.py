"""Words of a command line against the fields of a recipe."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import PRESETS
from hybridnorm.recipe import CommandLine, Recipe, field_types, load_recipe, split_overrides
from hybridnorm.recipe.load import dump_recipe
from hybridnorm.study import load_study


@dataclass
class Verb:
    recipe: str = "demo"
    run_dir: Path | None = None
    resume: bool = False


def split(*argv: str, grid: bool = False, names: Collection[str] = ("demo",)) -> CommandLine:
    return split_overrides(
        argv, Verb, "recipe", lambda word: word.endswith(".toml") or word in names, grid=grid
    )


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--train.steps 500", {"train.steps": 500}),
        ("--train.steps=500", {"train.steps": 500}),
        ("--train.steps 1 --train.steps 500", {"train.steps": 500}),
        ("--seed 3", {"seed": 3}),
        ("--train.mask-documents", {"train.mask_documents": True}),
        ("--train.mask_documents true", {"train.mask_documents": True}),
        ("--train.mask-documents=false", {"train.mask_documents": False}),
        ("--train.no-mask-documents", {"train.mask_documents": False}),
        ("--no-train.mask-documents", {"train.mask_documents": False}),
        ("--model.norm-topk-prob", {"model.norm_topk_prob": True}),
        ("--optimizer.betas 0.9 0.99", {"optimizer.betas": (0.9, 0.99)}),
        ("--optimizer.lr 1", {"optimizer.lr": 1.0}),
        ("--optimizer.lr -1e-3", {"optimizer.lr": -1e-3}),
        ("--train.threads None", {"train.threads": None}),
        ("--data.source 2024", {"data.source": "2024"}),  # a folder, not a number
        ("--data.source=", {"data.source": ""}),
        ("--data.prepared a b", {"data.prepared": ("a", "b")}),
        ("--data.prepared None", {"data.prepared": ()}),
        ("--model.preset 151M", {"model.preset": "151M"}),
    ],
)
def test_words_have_the_type_of_their_field(
    words: str, expected: dict[str, object], grid: bool
) -> None:
    found = split(*words.split(), grid=grid)
    assert found == (None, [], expected)
    assert [type(v) for v in found.overrides.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "my.toml --train.mask-documents --train.steps 5",
        "--train.mask-documents my.toml --train.steps 5",
        "--train.steps 5 my.toml --train.mask-documents",
        "--train.steps=5 my.toml --train.mask-documents",
        "--train.steps 5 --train.mask-documents true my.toml",
        "--train.steps 5 --train.mask-documents --resume my.toml",
        "--train.steps 5 --train.mask-documents --run-dir out my.toml",
        "--train.steps 5 --run_dir=out my.toml --train.mask-documents",
        "--train.mask-documents --train.steps 5 my.toml",
        "--train.no-mask-documents my.toml --train.steps 5 --train.mask-documents",
    ],
)
def test_the_positional_may_stand_anywhere(words: str, grid: bool) -> None:
    line = split(*words.split(), grid=grid)
    assert line.positional == "my.toml"
    assert line.overrides == {"train.steps": 5, "train.mask_documents": True}


def test_the_positional_behind_words_of_any_length() -> None:
    assert split("--data.prepared", "a", "my.toml").positional == "my.toml"
    assert split("--optimizer.betas", "0.9", "0.95", "demo").positional == "demo"
    assert split("--seed", "0", "1", "demo", grid=True)[::2] == ("demo", {"seed": [0, 1]})
    # Where it stands elsewhere, a file may be one more value.
    line = split("s.toml", "--model.placement", "pre-norm", "mine.toml", grid=True)
    assert line[::2] == ("s.toml", {"model.placement": ["pre-norm", "mine.toml"]})
    line = split("--model.preset", "demo-deep", "demo", grid=True)
    assert line[::2] == (None, {"model.preset": ["demo-deep", "demo"]})


def test_several_values_in_a_row() -> None:
    assert split("--seed", "0", "1", grid=True).overrides == {"seed": [0, 1]}
    line = split("--train.mask-documents", "true", "false", "demo", grid=True)
    assert line[::2] == ("demo", {"train.mask_documents": [True, False]})
    line = split("--model.n-kv-heads", "None", "2", grid=True)
    assert line.overrides == {"model.n_kv_heads": [None, 2]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.placment x", "'--model.placment'; did you mean '--model.placement'?"),
        ("--model.perset x", "'--model.perset'; did you mean '--model.preset'?"),
        ("--modle.d_model 3", "'--modle.d_model'; did you mean '--model.d-model'?"),
        ("--steps 3", "did you mean '--train.steps'?"),
        ("--resmue", "did you mean '--resume'?"),
        ("--recipe demo", "unknown argument '--recipe'"),
        ("--xyzzy=3", "unknown argument '--xyzzy'; see --help"),
        ("--train.no-steps", "unknown argument '--train.no-steps'"),
        ("--train.no-mask-documents=true", "unknown argument '--train.no-mask-documents'"),
        ("--train.steps 1.5", "--train.steps: expected a whole number, got '1.5'"),
        ("--train.steps None", "--train.steps: expected a whole number, got 'None'"),
        ("--train.steps", "--train.steps: expected one value, got none"),
        ("--train.hooks", "--train.hooks: expected values, got none; None is an empty"),
        ("--train.steps 5 6", "--train.steps: expected one value, got 5 6"),
        ("--train.mask-documents=yes", "--train.mask-documents: expected true or false"),
        ("--train.mask-documents true false", "--train.mask-documents: expected one value"),
        ("--optimizer.lr fast", "--optimizer.lr: expected a number, got 'fast'"),
        ("--optimizer.betas 0.9", "--optimizer.betas: expected 2 values, got 1"),
        ("--optimizer.betas 0.9 1 1", "--optimizer.betas: expected 2 values, got 3"),
        ("--train.dtype bf61", "--train.dtype: unknown value 'bf61'; did you mean 'bf16'?"),
        ("a.toml --train.steps 5 b.toml", "recipe: expected one, got a.toml b.toml"),
        ("demo --train.mask-documents my.toml", "recipe: expected one, got demo my.toml"),
    ],
)
def test_bad_words_name_the_field(words: str, message: str) -> None:
    with pytest.raises(HybridNormError) as caught:
        split(*words.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=6)
_FRACTION = st.floats(0.01, 0.99)
_COUNT = st.integers(1, 9999)
_MAYBE = st.none() | _COUNT
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "seed": st.integers(0, 2**40),
    "model.placement": st.sampled_from(["pre-norm", "qkv-post"]),
    "model.preset": st.sampled_from([None, *PRESETS]),
    "model.d_ff": _COUNT,
    "model.vocab_size": _MAYBE,
    "model.tie_embeddings": st.booleans(),
    "model.norm_eps": _FRACTION,
    "model.init_std": st.none() | _FRACTION,
    "data.source": _TEXT,
    "data.prepared": st.lists(_TEXT.filter(lambda word: word[:1] != "-"), max_size=3).map(tuple),
    "data.dedup": st.booleans(),
    "data.bad_lines": st.sampled_from(["fail", "skip"]),
    "train.steps": st.integers(200, 9999),
    "train.tokens": _MAYBE,
    "train.mask_documents": st.booleans(),
    "train.trackers": st.lists(st.sampled_from(["wandb", "trackio"])).map(tuple),
    "train.z_loss": st.floats(0, allow_infinity=False),
    "parallel.shard": _MAYBE,
    "optimizer.betas": st.tuples(_FRACTION, _FRACTION),
    "optimizer.lr": st.floats(0, exclude_min=True),
    "schedule.name": st.sampled_from(["linear", "cosine", "wsd"]),
    "schedule.decay_steps": _MAYBE,
}


def words_of(recipe: Recipe, spelling: int) -> list[str]:
    """A command line that says every field of a recipe, in one of several spellings."""
    words: list[str] = []
    for number, dotted in enumerate(field_types(Recipe)):
        section, _, name = dotted.rpartition(".")
        value = getattr(getattr(recipe, section) if section else recipe, name)
        option = f"--{dotted}" if (spelling + number) % 3 else f"--{dotted.replace('_', '-')}"
        if isinstance(value, bool) and (spelling + number) % 2:
            words.append(option if value else f"--{section}.no-{name}")
        elif isinstance(value, tuple):
            words += [option, *map(str, value or (None,))]
        else:
            words.append(f"{option}={value}")
    return words


@settings(deadline=None, max_examples=60)
@given(chosen=st.fixed_dictionaries({}, optional=FIELDS), spelling=st.integers(0, 5))
def test_a_recipe_survives_the_command_line(chosen: dict[str, object], spelling: int) -> None:
    try:
        recipe = load_recipe("demo", chosen)
    except HybridNormError:
        assume(False)
    for grid in (False, True):
        line = split("demo-moe", *words_of(recipe, spelling), grid=grid)
        assert load_recipe("demo-moe", line.overrides) == recipe


@settings(deadline=None, max_examples=30)
@given(chosen=st.fixed_dictionaries({}, optional=FIELDS), spelling=st.integers(0, 5))
def test_a_study_and_a_single_run_read_the_same_words_alike(
    chosen: dict[str, object], spelling: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        recipe = load_recipe("demo", chosen)
    except HybridNormError:
        assume(False)
    assume("decay_steps" not in str(chosen) and recipe.train.tokens is None)
    path = tmp_path_factory.mktemp("study") / "s.toml"
    path.write_text('compare = "seed"\n[grid]\nseed = [0, 1]\n"optimizer.betas" = [[0.9, 0.95]]\n')
    study = load_study(path, split("s.toml", *words_of(recipe, spelling), grid=True).overrides)
    single = load_recipe("demo", split(*words_of(recipe, spelling)).overrides)
    assert [run.recipe for run in study.runs] == [single.in_steps()] == [recipe.in_steps()]


def test_a_preset_is_what_nobody_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\npreset = "285M"\nn_layers = 2\n')
    recipe = load_recipe(path, split("--model.preset", "1.2B", "--model.d-ff", "64").overrides)
    assert (recipe.model.n_layers, recipe.model.d_ff) == (2, 64)
    assert recipe.model.d_model == PRESETS["1.2B"].d_model
    assert "preset" not in dump_recipe(recipe)
    resolved = tmp_path / "recipe.toml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    plain = load_recipe(path, split("--model.preset", "None").overrides)
    assert plain.model.d_model == Recipe().model.d_model
    with pytest.raises(HybridNormError, match=r"^model.preset: .* did you mean '151M'\?"):
        load_recipe("demo", {"model.preset": "151m"})
    path.write_text('[model]\nperset = "151M"')
    with pytest.raises(HybridNormError, match=r"model\.perset: .* did you mean 'preset'"):
        load_recipe(path)
    path.write_text("[model]\npreset = 151")
    with pytest.raises(HybridNormError, match=r"model\.preset: expected a string, got 151"):
        load_recipe(path)


def test_a_placement_file_in_two_places_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "mine.toml").write_text('[attention]\ninput_norm = "rms"\n')
    (tmp_path / "sub" / "recipe.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HybridNormError, match=r"model\.placement: mine\.toml is here and beside"):
        load_recipe("sub/recipe.toml", {"model.placement": "mine.toml"})
    full = str(tmp_path / "mine.toml")
    found = load_recipe("sub/recipe.toml", {"model.placement": full})
    assert found.model.placement == full
