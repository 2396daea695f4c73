"""Numbers in words: times, sizes; and pictures as text."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def size(n_bytes: float) -> str:
    """Bytes as MiB, or as GiB from 1 GiB on."""
    gib = n_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{n_bytes / 2**20:.1f} MiB"


def count(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | None, spec: str) -> str:
    """A number in its format, or a dash where it is not known."""
    return "–" if value is None else format(value, spec)


def svg(figure: "Figure", name: str, **options: Any) -> str:
    """A figure as an SVG element, the same at every call; it is a file as well.

    Args:
        name: keeps its ids apart from those of other figures.
        options: of matplotlib's `savefig`.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]
