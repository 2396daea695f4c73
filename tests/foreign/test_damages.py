"""A damaged config.json, given to every verb that reads one: a line that names file and field."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from candidates import save_llama, text
from command_line import Cli
from exports import EXPERTS, PLACEMENTS, exported, model
from hybridnorm.foreign import load_config

VERBS = {
    "inspect": (),
    "evaluate": ("--trust-remote-code", "--text", "a.txt"),
    "classify": ("--trust-remote-code",),
    "import": ("--to", "imported"),
    "diagnose": ("--out", "page"),
    "generate": (),
}
Table = dict[str, Any]
# What is done to a config.json, and what the line has to name besides the file.
DAMAGES: dict[str, tuple[Table | str, str]] = {
    "cut off": ('{"model_type": "llama",', "is not JSON"),
    "a list": ("[1]", "expected a JSON object, got list"),
    "empty": ("{}", "model_type: "),
    "of a wrong type": ({"hidden_size": "big"}, "hidden_size: expected a whole number, got 'big'"),
    "null": ({"hidden_size": None}, "hidden_size"),
    "of no heads": ({"num_attention_heads": 0}, "num_attention_heads: must be at least 1"),
    "of heads that do not divide": ({"num_attention_heads": 5}, "heads"),
    "of half a layer": ({"num_hidden_layers": 2.5}, "num_hidden_layers: expected a whole"),
    "of more layers": ({"num_hidden_layers": 7}, "num_hidden_layers"),
    "of fewer layers": ({"num_hidden_layers": 1}, "num_hidden_layers"),
    "of more tokens": ({"vocab_size": 999}, "vocab_size: "),
    "of fewer keys": ({"num_key_value_heads": 1}, "num_key_value_heads: "),
    "wider": ({"intermediate_size": 100}, "intermediate_size: "),
    "of no number": ({"rms_norm_eps": "x"}, "rms_norm_eps: expected a number"),
    "of no table": ({"rope_parameters": "x"}, "rope_parameters: expected a table"),
    "of an unknown kind": ({"rope_parameters": {"rope_type": "x"}}, "rope_type: unknown value"),
    "of an unknown function": ({"hidden_act": "zz"}, "hidden_act: unknown value 'zz'"),
}
OF_OURS: dict[str, tuple[Table | str, str]] = {
    "missing": ({"hidden_size": ...}, "hidden_size: is missing"),
    "without placement": ({"placement": ...}, "placement: is missing"),
    "nonsense": ({"placement": "nonsense"}, "placement: expected a table, got 'nonsense'"),
    "no kinds": ({"placement": {"kinds": ...}}, "placement: missing field 'kinds'"),
    "an odd layer": ({"placement": {"layers": [0, 7, 0]}}, "placement.layers: must name"),
    "an odd norm": (
        {"placement": {"kinds": {0: {"attention": {"v_norm": "rubbish"}}}}},
        "placement.kinds[0].attention.v_norm: unknown norm 'rubbish'",
    ),
    "an odd skip": (
        {"placement": {"kinds": {0: {"attention": {"skip": "odd"}}}}},
        "placement.kinds[0].attention.skip: unknown value 'odd'",
    ),
    "an odd last norm": ({"placement": {"final_norm": 3}}, "placement.final_norm: expected"),
    "of an odd past": ({"pretraining": {"steps": "x"}}, "pretraining.steps: expected a whole"),
}
CASES = [
    pytest.param(kind, verb, *damage, id=f"{kind}, {name}, {verb}")
    for kind, table in (("llama", DAMAGES), ("hybridnorm", DAMAGES | OF_OURS))
    for name, damage in table.items()
    for verb in VERBS
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    save_llama(folder / "llama")
    exported(model("hybridnorm"), folder / "run").save_pretrained(folder / "hybridnorm")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(text(0, 9))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def changed(table: Any, changes: Table) -> None:
    for name, value in changes.items():
        if value is ...:
            del table[name]
        elif isinstance(value, dict) and name in ("placement", "kinds", 0, "attention"):
            changed(table[name], value)
        else:
            table[name] = value


def damage(folder: Path, change: Table | str) -> None:
    path = folder / "config.json"
    if isinstance(change, dict):
        table = json.loads(path.read_text())
        changed(table, change)
        change = json.dumps(table)
    path.write_text(change)


@pytest.mark.parametrize(("kind", "verb", "change", "named"), CASES)
def test_every_verb_names_file_and_field(
    kind: str, verb: str, change: Table | str, named: str, folders: Path, cli: Cli
) -> None:
    folder = shutil.copytree(folders / kind, Path("damaged"))
    damage(folder, change)
    done = cli(verb, folder, *VERBS[verb])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    if verb == "generate":  # takes runs alone
        assert "`hybridnorm import` makes one" in done.stderr
    else:
        assert done.stderr.startswith("hybridnorm: damaged/config.json: ")
        assert named in done.stderr
    assert not Path("imported").exists()


@pytest.mark.parametrize("verb", ["inspect", "classify", "import"])
def test_what_is_whole_passes(verb: str, folders: Path, cli: Cli) -> None:
    for kind in ("llama", "hybridnorm"):
        done = cli(verb, folders / kind, *VERBS[verb])
        shutil.rmtree("imported", ignore_errors=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_no_placement_is_called_damaged(name: str, experts: Table, tmp_path: Path) -> None:
    made = exported(model(name, **experts), tmp_path / "run")
    made.save_pretrained(tmp_path / "out")
    found = load_config(tmp_path / "out", trust_remote_code=None)
    assert found.placement == made.config.placement


@pytest.mark.parametrize("verb", ["evaluate", "classify", "import"])
def test_weights_that_a_placement_has_no_place_for(verb: str, folders: Path, cli: Cli) -> None:
    """A norm that is taken out of the configuration alone is not left out in silence."""
    folder = shutil.copytree(folders / "hybridnorm", Path("damaged"))
    damage(folder, {"placement": {"kinds": {0: {"attention": {"v_norm": None}}}}})
    done = cli(verb, folder, *VERBS[verb])
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "unexpected 'model.layers.0.self_attn.v_norm.weight'" in done.stderr
