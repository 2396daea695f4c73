"""Dotted recipe fields on a command line: `--train.steps 500`, `--optimizer.betas 0.9 0.95`.

One parser for all verbs. A field takes `--field value` or `--field=value`, with `-` or `_` in its
name and `None` where it may be unset. A field that is true or false is a flag,
`--train.mask-documents` or `--train.no-mask-documents`; a word `true` or `false` may follow, no
other. An array takes all words in a row, None for an empty one. Of a field that is repeated, the
last one counts.

The verb's one positional may stand anywhere: further words are the positional where they name it.
Where a row of words may be of any length, that is its last word, if it is a .toml file or nothing
the field can be, and no positional is given elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.recipe.fields import RecipeFields, field_types
from hybridnorm.strict_toml import typed

_BOOLS = {"true": True, "True": True, "false": False, "False": False}


class CommandLine(NamedTuple):
    """A command line, taken apart."""

    positional: str | None
    """The verb's positional, if given."""
    options: list[str]
    """The verb's own options with their words, as they were given."""
    overrides: dict[str, object]
    """Typed values by dotted field. A list holds several values, one for each run of a study; the
    value of an array is a tuple."""


def split_overrides(
    argv: Sequence[str],
    verb: type,
    positional: str,
    is_name: Callable[[str], bool],
    *,
    grid: bool = False,
) -> CommandLine:
    """Take `argv` apart: what is the verb's own, and what are fields of a recipe.

    Args:
        argv: The words after the verb.
        verb: The dataclass of the verb's own options.
        positional: Its field that is the positional.
        is_name: Whether a word that follows a field's value may be the positional.
        grid: Whether a field may have several values in a row.

    Raises:
        HybridNormError: an unknown option, a value its field cannot have, or two positionals.
    """
    own: dict[str, Any] = {"-h": bool, "--help": bool}
    for option, (name, kind) in _options(verb).items():
        if "." not in name and name != positional:
            own |= {option: kind} | ({f"--no-{option[2:]}": bool} if kind is bool else {})
    known = _options()
    names: list[str] = []
    options: list[str] = []
    rows: dict[str, list[str]] = {}
    for word, words in _rows(argv):
        option, equals, inline = word.partition("=")
        option = option.replace("_", "-")
        if option in own:
            wanted = len(words) if _is_open(own[option], grid=False) else 1
            taken = 0 if own[option] is bool or equals else wanted
            options += [word, *words[:taken]]
            names += words[taken:]
        elif option in known:
            words = [inline, *words] if equals else words
            taken = max(_count(known[option][1], words, is_name, grid), int(bool(equals)))
            rows[option] = words[:taken]
            names += words[taken:]
        elif (flag := _negated(option, known)) and not equals:
            rows[flag] = ["false"]
            names += words
        elif word:
            hint = nearest(option, [*own, *known])
            hint = "see --help" if hint.startswith("known") else hint
            raise HybridNormError(f"unknown argument {word.partition('=')[0]!r}; {hint}")
        else:
            names += words
    if not names:
        names = [row.pop() for option, row in rows.items() if _ends(known[option][1], row, is_name)]
    if len(names) > 1:
        raise HybridNormError(f"{positional}: expected one, got {' '.join(names)}")
    overrides = {known[o][0]: _read(known[o][1], row, o, grid) for o, row in rows.items()}
    return CommandLine(names[0] if names else None, options, overrides)


def _options(cls: type = RecipeFields) -> dict[str, tuple[str, Any]]:
    """The field and annotation of each option."""
    return {f"--{n.replace('_', '-')}": (n, kind) for n, kind in field_types(cls).items()}


def _rows(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every option with the words up to the next one; those before the first, with ""."""
    option, words = "", list[str]()
    for word in argv:
        if word.startswith("--") or word == "-h":
            yield option, words
            option, words = word, []
        else:
            words.append(word)
    yield option, words


def _negated(option: str, known: dict[str, tuple[str, Any]]) -> str | None:
    """The flag that `--train.no-flag` or `--no-train.flag` turns off."""
    for no in ("--no-", ".no-"):
        flag = option.replace(no, no[:-3], 1)
        if flag != option and flag in known and known[flag][1] is bool:
            return flag
    return None


def _is_open(kind: Any, grid: bool) -> bool:
    """Whether a row of any length may follow."""
    return get_args(kind)[-1] is Ellipsis if get_origin(kind) is tuple else grid


def _count(kind: Any, words: list[str], is_name: Callable[[str], bool], grid: bool) -> int:
    """How many of the words are the field's; a word too many that names nothing is, too."""
    if kind is bool:
        return next((i for i, word in enumerate(words) if word not in _BOOLS), len(words))
    if _is_open(kind, grid):
        return len(words)
    least = len(get_args(kind)) if get_origin(kind) is tuple else 1
    return next((i for i in range(least, len(words)) if is_name(words[i])), len(words))


def _ends(kind: Any, row: list[str], is_name: Callable[[str], bool]) -> bool:
    """Whether the last word of a row is the positional rather than one more value."""
    if len(row) < 2 or kind is bool or not is_name(row[-1]):
        return False
    try:
        _read(kind, row[-1:], "", grid=False)
    except HybridNormError:
        return True
    return row[-1].endswith(".toml")


def _read(kind: Any, words: list[str], option: str, grid: bool) -> object:
    if get_origin(kind) is tuple:
        if not words:
            raise HybridNormError(f"{option}: expected values, got none; None is an empty array")
        words = [] if words == ["None"] else words
        return typed(kind, [_plain(get_args(kind)[0], word) for word in words], option)
    if kind is bool and not words:
        return True
    if not words or (len(words) > 1 and not grid):
        raise HybridNormError(f"{option}: expected one value, got {' '.join(words) or 'none'}")
    values = [typed(kind, _plain(kind, word), option) for word in words]
    return values[0] if len(values) == 1 else values


def _plain(kind: Any, word: str) -> object:
    """The number or truth a word stands for; `typed` judges what is none."""
    kinds = {kind, *get_args(kind)}
    if bool in kinds:
        return _BOOLS.get(word, word)
    for number in (int, float):
        if number in kinds:
            try:
                return number(word)
            except ValueError:
                return word
    return word
