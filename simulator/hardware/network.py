"""Links shared by flows at max-min fair rates. Pure: every call is told the time.

Max-min fairness is what TCP and credit-based fabrics tend to and what flow-level simulators assume: no flow can get
more without taking it from one that has no more than it. Found by progressive filling (Bertsekas and Gallager, Data
Networks, 2nd ed., section 6.5.2): all rates rise together until a link is full, whose flows then stay as they are.
Rates change only when a flow begins or ends, and only of flows that share a link with it, directly or through others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf

from simulator.core.errors import HardwareError


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction of a link; bandwidth in bytes/s."""

    name: str
    bandwidth: float


class Flow:
    """Bytes on their way. ``rate`` (bytes/s) and ``end`` (s) hold until some flow begins or ends."""

    __slots__ = ("cap", "end", "key", "number", "path", "rate", "remaining", "since", "size")

    def __init__(
        self, number: int, key: int, size: float, path: tuple[tuple[int, float], ...], cap: float, now: float
    ) -> None:
        self.number = number
        self.key = key
        self.size = size
        self.path = path  # (channel, share of the bytes that takes it)
        self.cap = cap  # bytes/s, whatever the channels offer
        self.remaining = size  # bytes, at ``since``
        self.since = now  # s
        self.rate = 0.0
        self.end = inf


class Network:
    """Channels and the flows on them."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        """Raises HardwareError for a channel without bandwidth."""
        for channel in channels:
            if not 0 < channel.bandwidth < inf:
                raise HardwareError(
                    f"link {channel.name} has a bandwidth of {channel.bandwidth} bytes/s.",
                    remedy="Give a positive one.",
                )
        self.channels = tuple(channels)
        self.carried = [0.0] * len(self.channels)  # bytes so far, at the last change
        self._on: list[dict[Flow, None]] = [{} for _ in channels]  # flows of each channel
        self._ends: list[tuple[float, int, int, Flow]] = []  # an entry is stale when its flow ends at another time
        self._number = count()

    def start(self, size: float, path: Mapping[int, float], now: float, *, key: int = 0, cap: float = inf) -> Flow:
        """A flow of ``size`` bytes begins. path: channels, and the share of its bytes that takes each: 1, or less
        where the bytes are divided among several. key: order among flows that end together. cap: its highest rate.
        """
        flow = Flow(next(self._number), key, size, tuple(path.items()), cap, now)
        if size <= 0:
            flow.remaining = flow.size = 0.0
        if not flow.remaining or (not flow.path and cap == inf):
            self._account(flow, flow.size)
            flow.remaining, flow.end = 0.0, now
            heappush(self._ends, (now, key, flow.number, flow))
            return flow
        for channel, _ in flow.path:
            self._on[channel][flow] = None
        if all(len(self._on[channel]) == 1 for channel, _ in flow.path):  # the usual case, without the search
            rates = [self.channels[channel].bandwidth / part for channel, part in flow.path]
            self._set(flow, min([cap, *rates]), now)
        else:
            self._share(self._component([flow]), now)
        return flow

    @property
    def next_end(self) -> float:
        """When the next flow ends if nothing begins before, s; inf: none is under way."""
        ends = self._ends
        while ends and ends[0][0] != ends[0][3].end:
            heappop(ends)
        return ends[0][0] if ends else inf

    def ended(self, now: float) -> list[Flow]:
        """Take off the flows that have ended by ``now``, in order of their end, then of their key."""
        done: list[Flow] = []
        while self.next_end <= now:
            flow = heappop(self._ends)[3]
            self._account(flow, flow.remaining)
            flow.remaining, flow.end = 0.0, -inf
            done.append(flow)
        self._take_off(done, now)
        return done

    def cancel(self, flow: Flow, now: float) -> float:
        """A flow stops before its end; returns the bytes it has carried."""
        if flow.end == -inf:
            return flow.size
        self._advance(flow, now)
        flow.end = -inf
        self._take_off([flow], now)
        return flow.size - flow.remaining

    def settle(self, now: float) -> None:
        """Bring ``carried`` and what remains of every flow up to ``now``."""
        for flow in {flow: None for flows in self._on for flow in flows}:
            self._advance(flow, now)

    # -- inside ------------------------------------------------------------------------------------------------

    def _take_off(self, flows: Sequence[Flow], now: float) -> None:
        on = self._on
        alone = all(len(on[channel]) == 1 for flow in flows for channel, _ in flow.path)
        neighbours = {} if alone else self._component(flows)
        for flow in flows:
            neighbours.pop(flow, None)
            for channel, _ in flow.path:
                on[channel].pop(flow, None)
        if neighbours:
            self._share(neighbours, now)

    def _component(self, flows: Iterable[Flow]) -> dict[Flow, None]:
        """Everybody whose rate may depend on these flows, them included, in order of their numbers."""
        found = dict.fromkeys(flows)
        seen: set[int] = set()
        stack = list(found)
        while stack:
            for channel, _ in stack.pop().path:
                if channel not in seen:
                    seen.add(channel)
                    new = [flow for flow in self._on[channel] if flow not in found]
                    found.update(dict.fromkeys(new))
                    stack.extend(new)
        return dict.fromkeys(sorted(found, key=_number))

    def _share(self, flows: dict[Flow, None], now: float) -> None:
        """Give everybody of a component its max-min fair rate from ``now`` on."""
        for flow, rate in self._rates(flows).items():
            if rate == flow.rate:
                continue  # its end stands, to the last bit
            self._advance(flow, now)
            self._set(flow, rate, now)

    def _set(self, flow: Flow, rate: float, now: float) -> None:
        flow.rate = rate
        flow.end = now + flow.remaining / rate
        heappush(self._ends, (flow.end, flow.key, flow.number, flow))

    def _rates(self, flows: dict[Flow, None]) -> dict[Flow, float]:
        """Progressive filling."""
        left = {c: self.channels[c].bandwidth for flow in flows for c, _ in flow.path}  # bytes/s not given away
        waiting = dict.fromkeys(left, 0)  # flows without a rate
        weight = dict.fromkeys(left, 0.0)  # bytes/s that they take for every byte/s of their own
        for flow in flows:
            for c, part in flow.path:
                waiting[c] += 1
                weight[c] += part
        capped = sorted((flow for flow in flows if flow.cap < inf), key=_cap, reverse=True)
        rates: dict[Flow, float] = {}
        while len(rates) < len(flows):
            while capped and capped[-1] in rates:
                capped.pop()
            fullest, share = None, inf
            for c, some in waiting.items():
                if some and left[c] / weight[c] < share:
                    fullest, share = c, left[c] / weight[c]
            if capped and capped[-1].cap <= share:
                fixed, share = [capped[-1]], capped[-1].cap
            else:
                assert fullest is not None  # a flow has channels or a cap
                fixed = [flow for flow in self._on[fullest] if flow not in rates]
            for flow in fixed:
                rates[flow] = share
                for c, part in flow.path:
                    left[c] = max(left[c] - share * part, 0.0)
                    waiting[c] -= 1
                    weight[c] -= part
        return rates

    def _advance(self, flow: Flow, now: float) -> None:
        moved = min(flow.rate * (now - flow.since), flow.remaining) if now > flow.since else 0.0
        self._account(flow, moved)
        flow.remaining -= moved
        flow.since = now

    def _account(self, flow: Flow, moved: float) -> None:
        for channel, part in flow.path:
            self.carried[channel] += moved * part


def _number(flow: Flow) -> int:
    return flow.number


def _cap(flow: Flow) -> float:
    return flow.cap
