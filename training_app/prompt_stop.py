"""Ends a run at once that is stopped before its first step: a large model loads for minutes, and nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from training_app.progress import RunReporter, StoppedBeforeFirstStepError

LOOK_SECONDS = 0.2


@contextmanager
def leaves_before_first_step(reporter: RunReporter) -> Iterator[None]:
    """Raises StoppedBeforeFirstStepError in the main thread when a stop is wished before the training has begun.

    By a signal, because the main thread is deep in an import or a loader then. Sent again and again: such code
    swallows exceptions here and there. A signal can only be handled in the main thread of a process.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if not reporter.has_begun:
            raise StoppedBeforeFirstStepError

    main, ended = threading.main_thread(), threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS) and not reporter.has_begun:
            if reporter.should_stop() and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, leave)
    watcher = threading.Thread(target=watch, name="prompt-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # First deaf, then the thread: a last signal must not hit what comes after.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        ended.set()
        watcher.join(timeout=5)
        signal.signal(signal.SIGUSR1, before)
