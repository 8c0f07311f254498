"""What a training run did, round by round, as JSON lines (RFC 8259; one value a line) that survive their writer.

::

    {"kind": "run", ...}        RunRecord, less its rounds and its end
    {"kind": "round", ...}      RoundRecord; many
    {"kind": "end", ...}        End

Nothing here is private: losses and metrics are noised sums, and no site's own appears. A line is durable once `append`
returns; one that a crash cut short is left out by `read`, which says so, and removed by the next `append`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dicom_node.core.errors import ConfigError, IntegrityError

#: Name of the file in a run's folder.
FILE: Final = "run.jsonl"
#: Folder at a coordinator that holds those of its runs.
RUNS: Final = "runs"


@dataclass(frozen=True)
class RoundRecord:
    """One finished round.

    Attributes
    ----------
    round : int
        Counts from 1.
    seconds : float
        From its announcement to the new state of the model.
    survivors : int
        Sites whose contribution is in the sum.
    bytes_up, bytes_down : mapping of str to int
        From and to each site, by its name.
    loss : float or None
        Mean over the patients drawn, from a noised secure sum; None where the run has none.
    metrics : mapping of str to float
        By name, from noised secure sums alone.
    epsilon : mapping of str to float
        Spent by this run so far, by site, as if every other site colluded; empty without differential privacy.
    distributed_epsilon : float or None
        Spent by this run so far if as many sites are honest as the terms ask; None in the other modes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    round: int
    seconds: float
    survivors: int
    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilon: Mapping[str, float] = field(default_factory=dict)
    distributed_epsilon: float | None = None


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes
    ----------
    outcome : str
        ``published`` with a candidate, ``finished`` without one, or ``stopped``.
    candidate : str
        Version of the model that was published, else empty.
    code : str
        Why it was stopped, as an error's code, else empty.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    outcome: Literal["published", "finished", "stopped"]
    candidate: str = ""
    code: str = ""


@dataclass(frozen=True)
class RunRecord:
    """A training run.

    Attributes
    ----------
    run : str
        Its identifier, hexadecimal.
    model : str
        What is trained, for people, e.g. ``head on efficientnet-lite0``.
    mode : str
        Who adds the noise: nobody, each site all of it, or each site a share.
    delta : float
        Of every epsilon; 0 without differential privacy.
    sites : tuple of str
        Names of the cohort.
    planned : int
        Rounds that the run will have.
    started_at : float
        Seconds since the epoch.
    settings : mapping of str to str
        What else was chosen: a name and a value, both in plain words with their unit.
    rounds : tuple of RoundRecord
        Ascending; of a round that was written twice, the later.
    end : End or None
        None while it runs.
    torn : bool
        Whether the file's last line was cut short, as by a crash; it is left out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    run: str
    model: str
    mode: Literal["none", "site", "distributed"]
    delta: float
    sites: tuple[str, ...]
    planned: int
    started_at: float
    settings: Mapping[str, str] = field(default_factory=dict)
    rounds: tuple[RoundRecord, ...] = ()
    end: End | None = None
    torn: bool = False


_KINDS: Final[dict[str, TypeAdapter[Any]]] = {
    "run": TypeAdapter(RunRecord),
    "round": TypeAdapter(RoundRecord),
    "end": TypeAdapter(End),
}
#: What `read` puts together, so a line does not carry it.
_DERIVED: Final = ("rounds", "end", "torn")


def append(folder: Path, what: RunRecord | RoundRecord | End) -> None:
    """Add a line to a run's record, durably; first the RunRecord, with no rounds of its own.

    Parameters
    ----------
    folder : Path
        Of the run; there is one writer at a time.
    what : RunRecord, RoundRecord or End

    Raises
    ------
    ValueError
        A number is infinite or none.
    """
    kind = {RunRecord: "run", RoundRecord: "round", End: "end"}[type(what)]
    values = {key: value for key, value in dataclasses.asdict(what).items() if key not in _DERIVED}
    line = json.dumps({"kind": kind, **values}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "r+b") as stream:
        whole = stream.read().rfind(b"\n") + 1
        stream.seek(whole)
        stream.truncate()
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def newest(folder: Path) -> Path:
    """Return the folder of the newest run below a coordinator's; any other folder is returned as it is."""
    found = [path for path in folder.glob(f"{RUNS}/*/{FILE}") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else folder


def read(folder: Path) -> RunRecord:
    """Read a run's record, also while it is being written.

    Parameters
    ----------
    folder : Path
        The run's, or the coordinator's for its newest run.

    Raises
    ------
    ConfigError
        The folder holds none, or its first line is not there yet (``no-run``).
    IntegrityError
        A line other than a last one that was cut short is not what `append` writes (``run-record``).
    """
    try:
        content = (newest(folder) / FILE).read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder} holds no record of a run: {error.strerror}", code="no-run") from error
    *lines, rest = content.split(b"\n")
    found = [_parse(number, line) for number, line in enumerate(lines, start=1)]
    if not found:
        raise ConfigError(f"the run in {folder} has not begun", code="no-run")
    run, *after = found
    if not isinstance(run, RunRecord) or any(isinstance(one, RunRecord) for one in after):
        raise _altered(1, "a record begins with its run, once")
    rounds = {one.round: one for one in after if isinstance(one, RoundRecord)}
    ends = [one for one in after if isinstance(one, End)]
    return dataclasses.replace(
        run,
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        # A run that was stopped may be taken up again: what counts is how the record ends now.
        end=ends[-1] if ends and isinstance(after[-1], End) else None,
        torn=bool(rest),
    )


def _parse(number: int, line: bytes) -> RunRecord | RoundRecord | End:
    try:
        values = json.loads(line)
        parsed: RunRecord | RoundRecord | End = _KINDS[values.pop("kind")].validate_python(values)
    except (ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        raise _altered(number, "it is not what this program writes") from error
    return parsed


def _altered(number: int, why: str) -> IntegrityError:
    return IntegrityError(f"the record of the run is damaged at line {number}: {why}", code="run-record")
