"""Spot instances, as they came and went in a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.core.errors import PolicyError
from simulator.faults.source import FAULTS, Change, Faults, OptionValue, Surroundings, chosen_group

NAMES = ("path", "warning_s", "offset_s", "group")


@FAULTS.register("spot-trace")
class SpotTrace(Faults):
    """Nodes come and go as a recording says; one replica runs on one node.

    Decides: which nodes there are. ``path`` is a CSV of ``milliseconds,add|remove,node`` (the form of Bamboo's and
        Parcae's recordings of AWS); ``offset_s`` plays it from there on (nodes of before are there at the start);
        ``warning_s`` before a node goes its replica is told; ``group`` names its group (default: the first).
    Why it helps: reclaims come in groups, and so does new capacity; an average rate has neither.
    Limits: what is recorded is what one user got, with a request for as many as possible.
    Reference: Bamboo (arXiv:2204.12013), github.com/uclasystem/bamboo; Parcae (arXiv:2403.14097).
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        for name in options:
            if name not in NAMES:
                message = f"fault source 'spot-trace': unknown option {name!r}."
                raise PolicyError(message, remedy=f"Its options: {', '.join(NAMES)}.")
        path = options.get("path")
        if not isinstance(path, str):
            raise PolicyError("fault source 'spot-trace': option 'path' is missing.", remedy="Give the CSV file.")
        warning, offset = (_number(name, options.get(name, 0.0)) for name in ("warning_s", "offset_s"))
        group = chosen_group("spot-trace", around, options)[0] or 0
        events = read_events(Path(path))
        there: dict[str, None] = {}
        for time, up, node in events:
            if time <= offset:
                if up:
                    there[node] = None
                else:
                    there.pop(node, None)
        now = [Change(0.0, group, node, up=True) for node in there]
        later = [
            Change(time - offset, group, node, up, 0.0 if up else min(warning, time - offset))
            for time, up, node in events
            if time > offset
        ]
        self._changes = (*now, *later)

    def changes(self) -> Sequence[Change]:
        return self._changes


def read_events(path: Path) -> list[tuple[float, bool, str]]:
    """(time in s, whether it comes, node), in order of time. Raises PolicyError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot be read: {error}.", where=str(path), remedy="Give a CSV file.") from error
    found: list[tuple[float, bool, str]] = []
    live: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(",")]
        where = f"{path}:{number}"
        if len(parts) != 3 or not parts[0].isdigit() or parts[1] not in ("add", "remove") or not parts[2]:
            raise PolicyError(f"{line!r} is not milliseconds,add|remove,node.", where=where, remedy="Correct the line.")
        time, up, node = int(parts[0]) / 1000.0, parts[1] == "add", parts[2]
        if found and time < found[-1][0]:
            raise PolicyError(f"time {parts[0]} is before that of the line above.", where=where, remedy="Sort by time.")
        if up == (node in live):
            message = f"{node} is {'already' if up else 'not'} there."
            raise PolicyError(message, where=where, remedy="Every node is added before it is removed, once each.")
        (live.add if up else live.remove)(node)
        found.append((time, up, node))
    if not found:
        raise PolicyError("holds no events.", where=str(path), remedy="Give lines of milliseconds,add|remove,node.")
    return found


def _number(name: str, value: OptionValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        message = f"fault source 'spot-trace': option {name!r} is {value!r}."
        raise PolicyError(message, remedy="Give seconds, 0 or more.")
    return float(value)
