"""`hybridnorm show` as its user sees it."""

import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.errors import HybridNormError
from hybridnorm.placements import placement, strategies, without_effect
from hybridnorm.placements.show.command import show
from hybridnorm.placements.show.facts import facts


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_shows(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(name, tmp_path, 4)
    printed = capsys.readouterr().out
    for part in (strategies()[name].title, "x' = ", "logits = ", f"{name}.svg", f"{name}.png"):
        assert part in printed.replace("\n", "") or part in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg", f"{name}.png"}


def test_the_command_shows_a_users_file(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine [draft]"\n'
        'attention = { q_norm = "rms", k_norm = "rms", v_norm = "rms", post_norm = "rms" }\n'
    )
    result = cli("show", path, "--out", tmp_path / "figures", "--n-layers", 6)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Mine [draft]\n")
    assert "blocks 1..6\n" in result.stdout
    assert "  y = N(x + Attn(x))\n  x' = y + FFN(y)\n" in result.stdout
    assert "equivalent to: hybridnorm\n" in result.stdout
    assert str(tmp_path / "figures" / "mine.svg") in result.stdout
    assert (tmp_path / "figures" / "mine.png").stat().st_size > 1000


def test_the_list_has_one_line_for_each(cli: Cli) -> None:
    lines = cli("show").stdout.splitlines()
    for line, (name, found) in zip(lines, strategies().items(), strict=False):
        assert line.split()[0] == name
        assert found.title in line
        assert line.endswith(found.source)
        assert f" {found.init} " in line
    assert len(lines) == len(strategies()) + 1
    assert "[pre-]<letters" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hybridnrom"], "hybridnorm: placement: unknown name 'hybridnrom'; did you mean 'hybri"),
        (["missing.toml"], "hybridnorm: missing.toml: cannot read: No such file"),
        (["pre-norm", "--n-layers", "0"], "hybridnorm: n_layers: must be from 1 to 10,000, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, cli: Cli) -> None:
    result = cli("show", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_show_imports_no_torch_and_the_list_no_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hybridnorm.placements.show import show\n"
        "show(None); assert 'matplotlib' not in sys.modules, 'matplotlib'\n"
        f"show('hybridnorm', Path({str(tmp_path)!r}))\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_no_layers_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(HybridNormError, match="n_layers"):
        show("hybridnorm", tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "n_layers", "warning"),
    [
        ('layers = "blocks 2, 99"', 4, "overrides[0].layers: there is no block 99 among 4"),
        ('layers = "every 5"', 4, "overrides[0].layers: 'every 5' selects none of 4 blocks"),
        ('layers = "first 25%"', 3, "overrides[0].layers: 'first 25%' selects none of 3 blocks"),
        ('layers = "first"', 4, ""),
    ],
)
def test_an_override_of_no_block_is_warned_of(
    text: str, n_layers: int, warning: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(f'overrides = [{{ {text}, attention = {{ input_norm = "rms" }} }}]')
    result = cli("show", path, "--n-layers", n_layers, "--out", tmp_path)
    said = [line for line in result.stdout.splitlines() if "warning" in line]
    assert said == ([f"  warning: {warning}"] if warning else [])


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("attention.input_norm.axis = 'full'", "attention.input_norm.axis: has no effect on rms"),
        ("attention.q_norm.alpha_init = 1.0", "attention.q_norm.alpha_init: has no effect on rms"),
        ("embed_norm = { kind = 'dyt', eps = 1.0 }", "embed_norm.eps: has no effect on dyt there"),
        ("overrides = [{ layers = 'last' }]", "overrides[0]: replaces nothing; name fields"),
        (
            "final_norm = 'layer'\nfeed_forward.post_norm = 'rms'",
            "final_norm: has no effect where the last block ends in a post-norm",
        ),
    ],
)
def test_a_setting_without_effect_is_warned_of(text: str, warning: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    [found] = without_effect(placement(tmp_path / "p.toml"), 12)
    assert found.startswith(warning)


@pytest.mark.parametrize("name", strategies())
def test_built_in_placements_say_nothing_in_vain(name: str) -> None:
    assert without_effect(placement(name), 12) == []


def test_one_is_no_plural(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('attention.post_norm = "rms"')
    assert facts(placement(tmp_path / "p.toml"), 1)["norms on the stream"] == (
        "1 in 1 block, and the final norm"
    )
