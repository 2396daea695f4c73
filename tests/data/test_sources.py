"""Which files a name stands for: what is training text, what is held out, what is neither."""

import json
import os
import re
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.data.prepare.sources import find_sources, split_of
from hybridnorm.errors import HybridNormError
from prepared_sets import make, texts_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(json.dumps({"text": name}) if ".json" in name else name)


def taken(*inputs: str, validation: str | None = None) -> dict[str, list[str]]:
    """The files by what becomes of them, and what is said of others."""
    found = find_sources(inputs, validation)
    splits: dict[str, list[str]] = {}
    for source in found.sources:
        splits.setdefault(source.split or "both", []).append(str(source.path))
    return splits | ({"over": sorted(found.passed_over)} if found.passed_over else {})


def test_folders_and_globs_are_sorted_and_files_keep_their_order() -> None:
    write("in/b.txt", "in/a.md", "in/sub/c.txt", "in/ignored.csv")
    assert taken("in") == {"both": ["in/a.md", "in/b.txt", "in/sub/c.txt"]}
    assert taken("in/*.txt") == {"both": ["in/b.txt"]}
    assert taken("in/**/*.txt") == {"both": ["in/b.txt", "in/sub/c.txt"]}
    assert taken("in/b.txt", "in/a.md") == {"both": ["in/b.txt", "in/a.md"]}


def test_upper_case_suffixes() -> None:
    write("in/A.TXT", "in/B.Jsonl", "in/C.JSON.GZ", "in/D.Parquet")
    assert len(taken("in")["both"]) == 4
    assert [source.format for source in find_sources(["in/A.TXT"]).sources] == [".txt"]


def test_hidden_files_read_me_files_and_runs_are_no_text() -> None:
    write("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a.jsonl", "README.md", "sub/LICENSE.txt")
    write("runs/x/recipe.toml", "runs/x/environment.json", "runs/x/metrics.jsonl")
    write("runs/x/checkpoints/notes.txt")
    over = ["._a.jsonl", ".ipynb_checkpoints", "README.md", "runs/x (a run)", "sub/LICENSE.txt"]
    assert taken(".") == {"both": ["a.jsonl"], "over": over}
    assert taken("**/*.jsonl") == {"both": ["a.jsonl"], "over": ["runs/x/metrics.jsonl (of a run)"]}
    assert taken("README.md") == {"both": ["README.md"]}, "named, it is wanted"
    with pytest.raises(HybridNormError, match=r"runs has no .* \(passed over: runs/x \(a run\)\)"):
        taken("runs")


def test_a_folder_of_splits() -> None:
    write("d/train.jsonl", "d/test.jsonl", "d/validation.jsonl", "d/more.jsonl")
    by_name = {"validation": ["d/validation.jsonl"], "train": ["d/more.jsonl", "d/train.jsonl"]}
    assert taken("d") == by_name | {"over": ["d/test.jsonl (test split)"]}
    assert taken("d/*.jsonl")["both"] == sorted(map(str, Path("d").iterdir())), "named one by one"
    write("e/train/a.txt", "e/dev/a.txt", "e/eval/a.txt")
    folders = {"validation": ["e/dev/a.txt"], "train": ["e/train/a.txt"]}
    assert taken("e") == folders | {"over": ["e/eval/a.txt (test split)"]}
    write("f/train.txt", "f/test.txt")
    assert taken("f") == {"both": ["f/train.txt"], "over": ["f/test.txt (test split)"]}


def test_what_is_held_out_may_be_named() -> None:
    write("d/a.txt", "d/b.txt", "d/held.txt", "e/train.txt", "e/validation.txt", "v/x.txt")
    some = {"validation": ["d/held.txt"], "train": ["d/a.txt", "d/b.txt"]}
    assert taken("d", validation="d/held.txt") == some
    other = {"validation": ["v/x.txt"], "train": ["e/train.txt"]}
    over = {"over": ["e/validation.txt (validation split)"]}
    assert taken("e", validation="v") == other | over
    write("g/essays.txt", "g/validation.txt")
    answered = {"validation": ["g/validation.txt"], "train": ["g/essays.txt"]}
    assert taken("g", validation="g/validation.txt") == answered


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_split_without_text_to_train_on_is_asked_about(name: str) -> None:
    write("d/essays.txt", f"d/{name}.txt")
    with pytest.raises(HybridNormError) as caught:
        taken("d")
    assert f"d/{name}.txt looks like a {name} split" in str(caught.value)
    (proposed,) = re.findall(r"such as '(.*)'", str(caught.value))
    assert taken(proposed) == {"both": ["d/essays.txt", f"d/{name}.txt"]}


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("train", "train"),
        ("c4-train.00000-of-01024", "train"),
        ("train-00000-of-00005-a1b2c3", "train"),
        ("wiki.valid", "validation"),
        ("validation_matched-00000-of-00001", "validation"),
        ("Test", "test"),
        ("test_sft-00000-of-00001", "test"),
        ("en_test2", "test"),
        ("latest", None),
        ("contest-of-trains", None),
        ("2024-01", None),
    ],
)
def test_names_of_splits(stem: str, split: str | None) -> None:
    assert split_of(stem) == split
    patterns = pytest.importorskip("datasets.data_files").get_data_patterns
    write(f"d/{stem.lower()}.txt")
    library = patterns(str(Path("d").absolute()))
    known = {"train", "validation", "test"} if len(library) > 1 else set(library)
    assert (split or "train") in known, "the datasets library agrees"


def test_a_dataset_of_several_splits() -> None:
    datasets = pytest.importorskip("datasets")

    def save(folder: str, *names: str) -> None:
        parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in names}
        datasets.DatasetDict(parts).save_to_disk(folder)

    save("d", "train", "validation", "test")
    splits = {"validation": ["d/validation"], "train": ["d/train"]}
    assert taken("d") == splits | {"over": ["d/test (test split)"]}
    save("e", "english", "french")
    assert taken("e") == {"both": ["e/english", "e/french"]}
    save("f", "test")
    with pytest.raises(HybridNormError, match=r"f/test looks like a test split.*'f/\*'"):
        taken("f")
    assert taken("f/*") == {"both": ["f/test"]}


def test_a_file_named_twice_comes_once() -> None:
    write("d/a.txt", "d/b.txt")
    Path("link.txt").symlink_to("d/a.txt")
    found = taken("d", "d/a.txt", "./d/../d/b.txt", "link.txt")
    assert found["both"] == ["d/a.txt", "d/b.txt"]
    assert found["over"] == [f"{n} (named twice)" for n in ("d/../d/b.txt", "d/a.txt", "link.txt")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("", "the empty name is no file or folder"),
        ("empty", r"empty has no \.txt"),
        ("*.jsonl", r"\*\.jsonl matches no folder and no \.txt"),
        ("table.csv", r"table\.csv is none of \.txt"),
        ("pipe.txt", "pipe.txt is no file or folder"),
        ("/dev/zero", "/dev/zero is no file or folder"),
        ("x" * 5000, "cannot read x*: File name too long"),
    ],
)
def test_inputs_that_are_not_there(name: str, message: str) -> None:
    Path("empty").mkdir()
    write("table.csv")
    os.mkfifo("pipe.txt")
    with pytest.raises(HybridNormError, match=message):
        taken(name)


def test_splits_become_splits(here: Path) -> None:
    write("d/train.jsonl", "d/test.jsonl", "d/dev.jsonl")
    make("d", here / "out", tokenizer="byte")
    assert texts_of(here / "out", "train") == ["d/train.jsonl"]
    assert texts_of(here / "out", "validation") == ["d/dev.jsonl"]
    with pytest.raises(HybridNormError, match="another preparation"):
        make("d/*.jsonl", here / "out", tokenizer="byte")
    with pytest.raises(HybridNormError, match=r"validation_fraction: has no effect beside d/dev"):
        make("d", here / "new", tokenizer="byte", validation_fraction=0.5)
    Path("d/dev.jsonl").write_text("\n")
    with pytest.raises(HybridNormError, match=r"d/dev\.jsonl: the validation split is empty"):
        make("d", here / "new", tokenizer="byte")
    with pytest.raises(HybridNormError, match=r"the train split is empty"):
        make("d/train.jsonl", here / "new", tokenizer="byte", validation="d/train.jsonl")
    assert not (here / "new").exists()


def test_of_equal_documents_the_held_out_one_stays(here: Path) -> None:
    for name in ("train", "validation"):
        Path(f"{name}.jsonl").write_text(f'{{"text": "both"}}\n{{"text": "{name}"}}\n')
    make(".", here / "out", tokenizer="byte", dedup=True)
    assert texts_of(here / "out", "train") == ["train"]
    assert texts_of(here / "out", "validation") == ["both", "validation"]


def test_the_verb_lists_what_it_takes(cli: Cli, here: Path) -> None:
    write("d/train.jsonl", "d/test.jsonl", "d/dev.jsonl", "d/README.md", "d/[/y].jsonl")
    result = cli("prepare", "d", "--out", here / "[/x]", "--tokenizer", "byte")
    assert result.returncode == 0, result.stderr
    assert "text (2): d/[/y].jsonl, d/train.jsonl\nheld out (1): d/dev.jsonl\n" in result.stdout
    assert "passed over (2): d/README.md, d/test.jsonl (test split)" in result.stdout
    assert "[/x]" in result.stdout
