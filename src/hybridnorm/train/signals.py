"""Signals that end a run: after the step, and saved."""

from collections.abc import Callable
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, Signals, getsignal, signal
from types import FrameType, TracebackType


class EndSignal:
    """Notes a signal to end as `number`, for as long as it is entered; a second Ctrl-C kills.

    torchrun and schedulers repeat SIGTERM, and must not kill a run while it saves. A signal that is
    ignored, as by nohup and in a shell's background, stays ignored.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.number, self._note = 0, note

    def __enter__(self) -> "EndSignal":
        found = {number: getsignal(number) for number in (SIGINT, SIGTERM, SIGHUP)}
        self._before = {number: handler for number, handler in found.items() if handler != SIG_IGN}
        for number in self._before:
            signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self._note(f"{Signals(number).name}: saving after this step")
        self.number = number
        if number == SIGINT:
            signal(SIGINT, self._before[SIGINT])
