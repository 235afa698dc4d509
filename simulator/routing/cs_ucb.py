"""A bandit that learns which replicas keep deadlines, and takes the one of those that needs least energy."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Annotated

import numpy as np

from simulator.core.options import Range, numbers, read_options
from simulator.routing.fleet import Floats, Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request

LEVELS = 16  # of load: 0, 1, 2-3, 4-7, ... requests in flight


@dataclass(frozen=True, slots=True)
class Bandit:
    """deadlines_s: from arrival to last token, of each service class, such as "2, 10", in alphabetical order of the
    trace's ``slo_class`` labels. default_deadline_s: for classes beyond those, and for requests without one.
    target: share of requests that is to meet it. exploration: factor of the confidence radius.
    """

    deadlines_s: str = ""
    default_deadline_s: Annotated[float, Range(1e-6)] = 10.0
    target: Annotated[float, Range(0, 1)] = 0.95
    exploration: Annotated[float, Range(0)] = 0.5


@ROUTERS.register("cs-ucb")
class CsUcb(Router):
    """Constrained upper confidence bounds: edge or cloud, by energy, among those that keep the deadline.

    Decides: per service class, kind of replica (those of equal power, speed and memory are alike) and level of load
    there (requests in flight, by powers of two) it keeps how many requests met their deadline and what energy they
    took. A replica satisfies the constraint where the upper confidence bound of the share that met it reaches
    ``target``, at this level and every lower one; of those the least lower bound of energy is taken, what was never
    tried first, the least loaded of those alike. Where none satisfies it, the one with the highest bound. Radii are
    ``sqrt(exploration ln t / n)``, with n tries out of t of the class; energy's in units of the largest mean.
    A request's energy is its share of what its replica draws above idle, divided evenly among those in flight there.
    Why it helps: small models on small GPUs answer cheaply as long as they are in time; which that is depends on
    class and load and is learnt, not modelled.
    Limits: while it learns, deadlines are missed; every level of load is learnt by itself; a trial whose
    outcome is not known yet holds back further ones at its level. The quality of small models' answers is not seen.
    Reference: Yang et al., PerLLM (arXiv:2405.14636), CS-UCB; its energy of transmission is not here, and its
    constraint functions on bandwidth and compute are replaced by the observed share of deadlines kept.
    """

    needs = Needs.IN_FLIGHT | Needs.FINISHES

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Bandit, "cs-ucb", options, "router")
        given = numbers("router 'cs-ucb'", "deadlines_s", chosen.deadlines_s)
        classes = around.trace.slo_class
        self._codes = None if classes is None else classes.codes
        known = 0 if classes is None else len(classes.names)
        deadlines = [given[c] if c < len(given) else chosen.default_deadline_s for c in range(known)]
        self._deadlines_s = [*deadlines, chosen.default_deadline_s]  # the last: of no class
        self._fleet, self._target, self._exploration = around.fleet, chosen.target, chosen.exploration
        size = around.fleet.size
        alike = np.stack([around.fleet.watts, around.fleet.weight, around.fleet.num_blocks], axis=1)
        kinds, self._kinds = np.unique(alike, axis=0, return_inverse=True)
        shape = (len(self._deadlines_s), len(kinds), LEVELS)
        # Whole numbers add up to the same in whatever order replicas report.
        self._tries, self._known, self._met, self._energy_uj = (np.zeros(shape, dtype=np.int64) for _ in range(4))
        self._joules: Floats = np.zeros(size)  # per request in flight all the time, so far
        self._since: Floats = np.zeros(size)  # s, up to when
        self._sent: dict[int, tuple[int, int, int, float]] = {}  # by row: class, replica, level, joules then

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        kind = -1 if self._codes is None else int(self._codes[request.row])
        level = np.minimum(np.frexp(self._fleet.in_flight[candidates])[1], LEVELS - 1)
        chosen, at = self._choose(kind, candidates, level)
        if (before := self._sent.pop(request.row, None)) is not None:
            self._forget(*before[:3])  # it has left that replica, whatever it was like there
        self._pass(chosen, now, int(self._fleet.in_flight[chosen]))
        self._tries[kind, self._kinds[chosen], at] += 1
        self._sent[request.row] = kind, chosen, at, float(self._joules[chosen])
        return chosen

    def _choose(self, kind: int, candidates: Ints, level: Ints) -> tuple[int, int]:
        """(replica, its level of load)."""
        arms = self._kinds[candidates]
        tries, known = self._tries[kind, arms], self._known[kind, arms]  # (candidates, levels)
        total = log(max(int(self._tries[kind].sum()), 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            radius = np.sqrt(self._exploration * total / tries)
            share = np.where(known > 0, self._met[kind, arms] / known, 1.0) + radius
            energy = self._energy_uj[kind, arms] / known
            bound = energy - float(np.nanmax(energy, initial=0.0)) * radius
        share[tries == 0] = np.inf
        rows = np.arange(len(candidates))
        satisfied = np.minimum.accumulate(share >= self._target, axis=1)[rows, level]
        waiting = (known == 0) & (tries > 0)
        able = satisfied & ~waiting[rows, level]
        if able.any():
            least_energy = np.where(able, np.where(tries == 0, -np.inf, bound)[rows, level], np.inf)
            equal = np.flatnonzero(least_energy == least_energy.min())
            best = int(equal[self._fleet.in_flight[candidates[equal]].argmin()])
        elif satisfied.any():  # trials everywhere: to the emptiest
            best = int(np.where(satisfied, level, LEVELS).argmin())
        else:
            best = least(-share[rows, level], np.arange(len(candidates)))
        return int(candidates[best]), int(level[best])

    def finished(self, request: Request, replica: int, time: float) -> None:
        kind, sent_to, level, joules = self._sent.pop(request.row)
        self._pass(replica, time, int(self._fleet.in_flight[replica]) + 1)  # it is not counted there any more
        if replica != sent_to:  # it has moved: its time says nothing of either
            self._forget(kind, sent_to, level)
            return
        replica_kind = self._kinds[replica]
        self._known[kind, replica_kind, level] += 1
        self._met[kind, replica_kind, level] += time - request.arrival <= self._deadlines_s[kind]
        self._energy_uj[kind, replica_kind, level] += round(1e6 * (self._joules[replica] - joules))

    def _forget(self, kind: int, replica: int, level: int) -> None:
        """A trial will have no outcome."""
        self._tries[kind, self._kinds[replica], level] -= 1

    def _pass(self, replica: int, time: float, requests: int) -> None:
        """Time goes by on a replica: the requests there share the energy."""
        if requests:
            elapsed = max(time - self._since[replica], 0.0)
            self._joules[replica] += elapsed * self._fleet.watts[replica] / requests
        self._since[replica] = time
