"""The loops of a service: each step runs in a thread of its own until the service is told to stop.

Services are crash-only. A step that meets an unavailable peer pauses and goes on; on any other fault the whole
service stops with that error's exit status and the service manager starts it anew, which is always safe.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping

from . import logs
from .errors import Unavailable, VeilRayError

log = logs.get(__name__)
LONGEST_PAUSE_S = 30.0


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set; call it from the main thread."""
    return _set_by(signal.SIGTERM, signal.SIGINT)


def reload_on_signal() -> threading.Event:
    """Return an event that SIGHUP sets; call it from the main thread."""
    return _set_by(signal.SIGHUP)


def _set_by(*numbers: signal.Signals) -> threading.Event:
    event = threading.Event()
    for number in numbers:
        signal.signal(number, lambda *_: event.set())
    return event


def run(steps: Mapping[str, Callable[[], bool]], poll_s: float, stop: threading.Event) -> int:
    """Repeat every step until `stop` is set.

    Parameters
    ----------
    steps : mapping of str to callable
        Name and one round of work; it returns whether there was anything to do, and is called again at once if so.
    poll_s : float
        Pause after a round without work, seconds.
    stop : threading.Event
        Ends the loops.

    Returns
    -------
    int
        Exit status: 0 after a wanted stop.
    """
    statuses: list[int] = []

    def repeat(name: str, step: Callable[[], bool]) -> None:
        pause = poll_s
        while not stop.is_set():
            try:
                busy = step()
                pause = poll_s
            except Unavailable as error:
                pause = min(LONGEST_PAUSE_S, max(1.0, pause * 2))
                busy = False
                log.warning("step-paused", kind=name, duration_s=pause, **logs.describe(error))
            except Exception as error:
                log.error("step-failed", kind=name, **logs.describe(error))
                statuses.append(error.exit_status if isinstance(error, VeilRayError) else 70)
                stop.set()
                return
            if not busy:
                stop.wait(pause)

    threads = [threading.Thread(target=repeat, args=item, name=item[0], daemon=True) for item in steps.items()]
    for thread in threads:
        thread.start()
    while not stop.wait(1.0):  # a bounded wait lets the main thread run its signal handlers
        pass
    for thread in threads:
        thread.join(timeout=10.0)
    return statuses[0] if statuses else 0
