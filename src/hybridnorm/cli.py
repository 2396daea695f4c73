"""`hybridnorm <verb>`: thin calls into the rooms. Torch is imported by the verbs that compute."""

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import hybridnorm
from hybridnorm.errors import HybridNormError, in_a_line, nearest
from hybridnorm.options import parse_options
from hybridnorm.recipe import builtin, load_fields, load_recipe, run_name, split_overrides
from hybridnorm.terminal import Screen, close_output, open_output, printable
from hybridnorm.verbs import (
    Advise,
    Classify,
    Diagnose,
    Evaluate,
    Export,
    Generate,
    Import,
    Inspect,
    Prepare,
    Show,
    StudyArgs,
    StudyList,
    StudyReport,
    Train,
)

_TAKE_LESS = (
    "take less at a time: train.micro_batch_size or parallel.activation_checkpointing full of a "
    "run, which --resume continues, --batch-tokens of evaluate"
)


def _train(argv: Sequence[str]) -> None:
    line = split_overrides(argv, Train, "recipe", _is_file_or(builtin()))
    name = "demo" if line.positional is None else line.positional
    default = Train(recipe=name, config=load_fields(name))
    args = parse_options(Train, "train", line.options, default)
    run_dir = args.run_dir or _default_run_dir(name, line.overrides)
    own = run_dir / "recipe.toml"
    if args.resume and line.positional is None and own.exists():
        name = str(own)
    recipe = load_recipe(name, line.overrides)
    from hybridnorm.train import set_up_process

    set_up_process(recipe.train)
    from hybridnorm.diagnose import probing_hooks
    from hybridnorm.evaluate import asking_hooks
    from hybridnorm.train import end_rank, train

    hooks = [*probing_hooks(recipe), *asking_hooks(recipe)]
    stopped_by = train(recipe, run_dir, resume=args.resume, force=args.force, hooks=hooks)
    end_rank(128 + stopped_by if stopped_by else 0)


def _default_run_dir(name: str, overrides: Mapping[str, object]) -> Path:
    return Path("runs") / run_name(name, load_recipe(name, overrides))


def _show(argv: Sequence[str]) -> None:
    args = parse_options(Show, "show", argv)
    from hybridnorm.placements.show import show

    show(args.placement, args.out, args.n_layers)


def _classify(argv: Sequence[str]) -> None:
    args = parse_options(Classify, "classify", argv)
    from hybridnorm.diagnose.classifier import classify_command

    classify_command(args.module, args.out, trust_remote_code=args.trust_remote_code)


def _study(argv: Sequence[str]) -> None:
    {"list": _study_list, "report": _study_report}.get(argv[0] if argv else "", _study_run)(argv)


def _study_list(argv: Sequence[str]) -> None:
    parse_options(StudyList, "study list", argv[1:])
    from hybridnorm.study import list_studies

    Screen().print(list_studies())


def _study_report(argv: Sequence[str]) -> None:
    args = parse_options(StudyReport, "study report", argv[1:])
    from hybridnorm.study import rebuild

    print(f"report: {rebuild(args.dir)}")


def _study_run(argv: Sequence[str]) -> None:
    line = split_overrides(argv, StudyArgs, "study", _is_file_or(builtin("studies")), grid=True)
    from hybridnorm.study import load_study

    name = "demo" if line.positional is None else line.positional
    study = load_study(name, line.overrides)
    config = load_fields(study.recipe, {**study.common, **study.runs[0].values})
    default = StudyArgs(study=name, config=config)
    args = parse_options(StudyArgs, "study", line.options, default)
    from hybridnorm.study import run_study

    folder = args.dir or Path("studies") / study.name
    command = shlex.join(["hybridnorm", "study", *argv])
    run_study(study, folder, jobs=args.jobs, command=command, launcher=args.launcher)


def _advise(argv: Sequence[str]) -> None:
    line = split_overrides(argv, Advise, "recipe", _is_file_or(builtin()))
    name = line.positional or "demo"
    default = Advise(recipe=name, config=load_fields(name))
    args = parse_options(Advise, "advise", line.options, default)
    from hybridnorm.study import advise

    folder = args.dir or Path("studies") / f"{Path(name).stem}-advice"
    command = shlex.join(["hybridnorm", "advise", *argv])
    advise(name, line.overrides, folder, minutes=args.minutes, jobs=args.jobs, command=command)


def _prepare(argv: Sequence[str]) -> None:
    args = parse_options(Prepare, "prepare", argv)
    from hybridnorm.data import cores, find_sources, prepare_folder, report

    screen, workers = Screen(), args.workers or cores()
    found = find_sources(args.inputs, args.config.validation)
    manifest = prepare_folder(found, args.out, args.config, workers=workers, console=screen)
    screen.print(report(args.out, manifest))


def _generate(argv: Sequence[str]) -> None:
    args = parse_options(Generate, "generate", argv)
    from hybridnorm.train import generate_text

    print(generate_text(args.run_dir, args.prompt, args, checkpoint=args.checkpoint))


def _export(argv: Sequence[str]) -> None:
    args = parse_options(Export, "export", argv)
    from hybridnorm.interop.huggingface import export_run

    problems = export_run(
        args.run_dir,
        args.to,
        checkpoint=args.checkpoint,
        dtype=args.dtype,
        architecture=args.architecture,
    )
    for problem in problems:
        print(f"passed over: {problem}", file=sys.stderr)
    print(f"exported to {args.to}")


def _import(argv: Sequence[str]) -> None:
    args = parse_options(Import, "import", argv)
    from hybridnorm.interop.huggingface import import_model

    import_model(args.source, args.to)
    if not (args.to / "tokenizer.json").exists():
        print(f"it brought no tokenizer: put the model's there, as {args.to}/tokenizer.json")
    print(f"imported to {args.to}; train on with")
    print(f"  hybridnorm train {args.to}/recipe.toml --run-dir {args.to} --resume")


def _inspect(argv: Sequence[str]) -> None:
    args = parse_options(Inspect, "inspect", argv)
    from hybridnorm.interop import inspect

    inspect(args.path)


def _diagnose(argv: Sequence[str]) -> None:
    line = split_overrides(argv, Diagnose, "target", _is_file_or(builtin()))
    target = line.positional or "demo"
    folder = Path(target).is_dir()
    default = Diagnose(target=target, config=load_fields("demo" if folder else target))
    args = parse_options(Diagnose, "diagnose", line.options, default)
    from hybridnorm.diagnose import diagnose, listing

    if args.list:
        print(listing())
        return
    from hybridnorm.train import end_rank

    probes = args.probes or default.config.diagnose.probes
    with _as_run(Path(target)) as (run, out):
        diagnose(run, line.overrides, probes, checkpoint=args.checkpoint, out=args.out or out)
    end_rank(0)


@contextlib.contextmanager
def _as_run(target: Path) -> Iterator[tuple[str, Path | None]]:
    """A folder of `transformers` as step 0 of a run, and where its page goes; all else as it is."""
    if not (target / "config.json").exists():
        yield str(target), None
        return
    from hybridnorm.interop.huggingface import import_model

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, target.resolve().name)
        import_model(target, run)
        yield str(run), Path("diagnose", run.name)


def _evaluate(argv: Sequence[str]) -> None:
    args = parse_options(Evaluate, "evaluate", argv)
    from hybridnorm.evaluate import evaluate

    evaluate(args.model, args.config)


VERBS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "train": ("train one model", _train),
    "prepare": ("turn text into token shards, once and in parallel", _prepare),
    "generate": ("continue a prompt with a trained model", _generate),
    "evaluate": ("perplexity of texts, and downstream tasks through lm-eval", _evaluate),
    "study": ("compare placements, learning rates, seeds, ... with statistics", _study),
    "advise": ("find placement and learning rate for a recipe, in a budget of time", _advise),
    "export": ("a run as a folder that Hugging Face transformers loads", _export),
    "import": ("a model from elsewhere as a run", _import),
    "inspect": ("what a run or a model folder holds", _inspect),
    "diagnose": ("see why a placement trains well or badly: probes on a model or a run", _diagnose),
    "show": ("equations, facts and drawing of a placement", _show),
    "classify": ("say which norms a block or a model of anybody has", _classify),
}


def main() -> None:
    """The command line. Bad input is one line on stderr and exit status 1."""
    try:
        open_output()
        try:
            _run(*sys.argv[1:] or ["--help"])
        finally:
            close_output()
    except HybridNormError as error:
        _fail(str(error))
    except BrokenPipeError:
        pass
    except OSError as error:
        # What fails without a name was open already; writers of files name theirs.
        _fail(f"{error.filename or 'standard output'}: {error.strerror}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every verb imports
            raise
        # It may be one rank's alone, so each says it.
        sys.exit(f"hybridnorm: memory: {in_a_line(error)}; {_TAKE_LESS}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    # Under torchrun every rank sees the same bad input; one of a node's ranks says it.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    sys.exit(f"hybridnorm: {printable(message)}" if speaks else 1)


def _run(verb: str, *argv: str) -> None:
    if odd := [word for word in argv if any("\ud800" <= c <= "\udfff" for c in word)]:
        raise HybridNormError(f"{odd[0]}: is not text here; rename it, or set LC_ALL=C.UTF-8")
    if verb in ("-h", "--help"):
        print(_usage())
    elif verb == "--version":
        print(hybridnorm.__version__)
    elif verb in VERBS:
        VERBS[verb][1](argv)
    else:
        raise HybridNormError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, (summary, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: hybridnorm <verb> [arguments]",
            "",
            "Pretrain transformers with HybridNorm, and compare normalization placements.",
            "",
            *lines,
            "",
            "`hybridnorm <verb> --help` shows every argument with its default and meaning.",
        ]
    )


def _is_file_or(known: Collection[str]) -> Callable[[str], bool]:
    return lambda word: word.endswith(".toml") or word in known
