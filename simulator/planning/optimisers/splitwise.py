"""Splitwise's provisioning: how many machines of which kind compute prompts, and how many tokens, within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from simulator.core.errors import UserError
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Optimiser, Question, Simulated
from simulator.planning.optimisers.phases import Side, alone, answers_alone, check_limits, prompts_alone, split
from simulator.planning.runs import WORKSHOP
from simulator.scenario.engine import HardwareSpec
from simulator.scenario.spec import Positive, PositiveNumber, Shorthand, spec

DESIGNS = {
    "AA": ("A", "A"), "HH": ("H", "H"), "HA": ("H", "A"), "HHcap": ("H", "Hcap"), "A": ("A", None), "H": ("H", None)
}  # fmt: skip
Machine = Annotated[HardwareSpec, Shorthand("gpu")]


def _machines() -> dict[str, HardwareSpec]:
    return {
        "A": HardwareSpec(gpu="A100-SXM-80GB"),
        "H": HardwareSpec(gpu="H100-SXM"),
        "Hcap": HardwareSpec(gpu="H100-SXM", power_cap_w=350.0),
    }


@spec
class Options:
    """Of ``splitwise``. Give exactly one of ``usd_per_hour``, ``power_w``, ``machines_total`` and ``rate``."""

    usd_per_hour: PositiveNumber | None = None
    """Iso-cost: the most requests per second for so much."""
    power_w: PositiveNumber | None = None
    """Iso-power: the most requests per second with so many watts of provisioned GPU power (TDP, or the cap)."""
    machines_total: Positive | None = None
    """As many machines: the most requests per second."""
    rate: PositiveNumber | None = None
    """Iso-throughput: what serves so many requests per second for the least of ``least``."""
    least: Literal["usd_per_hour", "power_w", "machines"] = "usd_per_hour"
    """What iso-throughput spares."""
    designs: Annotated[tuple[Literal["AA", "HH", "HA", "HHcap", "A", "H"], ...], Field(min_length=1)] = (
        "AA", "HH", "HA", "HHcap", "A", "H"
    )  # fmt: skip
    """Machines for prompts and for tokens; A and H: every machine computes both."""
    machines: dict[Literal["A", "H", "Hcap"], Machine] = field(default_factory=dict)
    """Other machines than A100-SXM-80GB, H100-SXM, and the latter capped at 350 W."""

    def __post_init__(self) -> None:
        given = (self.usd_per_hour, self.power_w, self.machines_total, self.rate)
        if sum(one is not None for one in given) != 1:
            raise ValueError("give exactly one of 'usd_per_hour', 'power_w', 'machines_total' and 'rate'.")
        if self.rate is None and self.least != "usd_per_hour":
            raise ValueError("'least' goes with 'rate'.")


@dataclass(frozen=True)
class Kind:
    """A kind of machine, one engine on each: USD per hour (None: not known), provisioned watts, and requests/s of
    prompts alone, of answers alone, and of both."""

    side: Side
    usd: float | None
    watts: float
    prompts: float = 0.0
    answers: float = 0.0
    both: float = 0.0


@dataclass(frozen=True)
class Plan:
    """``many`` machines for prompts (or for both) and ``several`` for answers."""

    design: str
    many: int
    several: int
    belief: float
    usd_per_hour: float | None
    power_w: float

    @property
    def machines(self) -> int:
        return self.many + self.several


@OPTIMISERS.register("splitwise")
class Splitwise(Optimiser[Options]):
    """Machines for prompts and for tokens under equal cost, equal power, or for a rate (Splitwise's provisioning).

    Decides: for each design (AA, HH, HA, HHcap; A and H do not split) how many machines compute prompts and how many
    tokens: the most requests per second within a budget, or the least budget for a rate. Every split is looked at.
    Why it helps: prompts want compute, answers memory bandwidth; an older or capped GPU does for the latter.
    Limits: the paper simulates every split; here a split is believed to carry the smaller of its sides, each machine
    measured by itself, and only the best few are simulated. Power is what is provisioned for GPUs, not drawn. Limits
    are absolute, where the paper's are multiples of an idle A100 machine. The mixed pool is
    ``cluster.disaggregation.mixed`` of the scenario.
    Reference: Patel et al., Splitwise, ISCA 2024 (arXiv:2311.18677), sections 4.4 and 6.
    """

    Options = Options

    def search(self) -> Sequence[Candidate]:
        """The best split of each design, by belief. Raises UserErrors: no limits of TTFT and TPOT, no price."""
        check_limits(self.question)
        self.kinds = self._measured()
        plans, refused = [], []
        for design in self.options.designs:
            best = min(self._fitting(design), key=self._order, default=None)
            if best is None:
                refused.append(Candidate(design, reason="no number of machines within the budget serves both sides."))
            else:
                plans.append(best)
        plans.sort(key=self._order)
        return [*(self._candidate(plan) for plan in plans), *refused]

    @property
    def goal(self) -> str:
        return self.quantity if self.options.rate is None else f"{self.options.least}, of those that serve the rate"

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """Requests per second; for a rate how little is spent, where it is served."""
        rate, spared = self.options.rate, candidate.columns[self.options.least]
        if rate is None:
            return simulated.value
        return 1.0 / float(spared) if simulated.value >= rate and spared else -math.inf

    def _measured(self) -> dict[str, Kind]:
        """Every kind of machine that a design names, by itself."""
        base, options = self.question.scenario, self.options
        specs = _machines() | options.machines
        names = sorted({name for design in options.designs for name in DESIGNS[design] if name is not None})
        kinds = {name: _kind(self.question, Side(specs[name], base.engine)) for name in names}
        if options.usd_per_hour is not None and (unknown := [n for n in names if kinds[n].usd is None]):
            remedy = "Give machines: a price_per_gpu_hour, or another budget."
            raise UserError(f"no price of {specs[unknown[0]].gpu} is known.", remedy=remedy)
        here, there, both = self._roles()
        for name, one in zip(here, prompts_alone(self.question, [kinds[n].side for n in here]), strict=True):
            kinds[name] = replace(kinds[name], prompts=one.value if one.value > 0 else 0.0)
        for name, one in zip(there, answers_alone(self.question, [kinds[n].side for n in there]), strict=True):
            kinds[name] = replace(kinds[name], answers=one.value if one.value > 0 else 0.0)
        whole = [self.question.design(alone(base, kinds[name].side)) for name in both]
        for name, one in zip(both, self.question.sustained(whole, "machines alone"), strict=True):
            kinds[name] = replace(kinds[name], both=one.value if one.value > 0 else 0.0)
        return kinds

    def _roles(self) -> tuple[list[str], list[str], list[str]]:
        """Kinds that compute prompts, answers, and both."""
        pairs = [DESIGNS[design] for design in self.options.designs]
        here = sorted({one for one, other in pairs if other is not None})
        there = sorted({other for _, other in pairs if other is not None})
        return here, there, sorted({one for one, other in pairs if other is None})

    def _fitting(self, design: str) -> Iterable[Plan]:
        """All numbers of machines worth a look: within the budget, or just enough for the rate."""
        rate, (first, second) = self.options.rate, DESIGNS[design]
        one = self.kinds[first]
        if second is None:
            if one.both > 0:
                many = self._most(one) if rate is None else math.ceil(rate / one.both - 1e-9)
                yield from [self._plan(design, many, 0, many * one.both)] if many else []
            return
        other = self.kinds[second]
        if not (one.prompts > 0 and other.answers > 0):
            return
        if rate is not None:
            many, several = (math.ceil(rate / each - 1e-9) for each in (one.prompts, other.answers))
            yield self._plan(design, many, several, min(many * one.prompts, several * other.answers))
            return
        for many in range(1, self._most(one) + 1):
            several = self._most(other, beside=self._amount(one) * many)
            if several:
                yield self._plan(design, many, several, min(many * one.prompts, several * other.answers))

    def _budget(self) -> float:
        options = self.options
        return float(options.usd_per_hour or options.power_w or options.machines_total or 0.0)

    def _amount(self, kind: Kind) -> float:
        """What a machine takes of the budget."""
        options = self.options
        return (kind.usd or 0.0) if options.usd_per_hour else kind.watts if options.power_w else 1.0

    def _most(self, kind: Kind, beside: float = 0.0) -> int:
        """Machines of a kind within the budget, beside what is spent."""
        return max(0, math.floor((self._budget() - beside) / max(self._amount(kind), 1e-9) + 1e-9))

    def _plan(self, design: str, many: int, several: int, belief: float) -> Plan:
        first, second = DESIGNS[design]
        used = [(self.kinds[first], many), *([] if second is None else [(self.kinds[second], several)])]
        usd = None if any(kind.usd is None for kind, _ in used) else sum((kind.usd or 0.0) * n for kind, n in used)
        return Plan(design, many, several, belief, usd, sum(kind.watts * n for kind, n in used))

    def _order(self, plan: Plan) -> tuple[float, float]:
        """The best first: by requests per second, or by what is spared; then by cost."""
        if self.options.rate is None:
            return -plan.belief, plan.usd_per_hour or plan.power_w
        spared = getattr(plan, self.options.least)
        return (math.inf if spared is None else float(spared)), -plan.belief

    def _candidate(self, plan: Plan) -> Candidate:
        first, second = DESIGNS[plan.design]
        base, one = self.question.scenario, self.kinds[first].side
        if second is None:
            label = f"{plan.design}: {plan.many} machines for both"
            scenario = alone(base, one)
            scenario = replace(scenario, cluster=replace(scenario.cluster, replicas=plan.many))
        else:
            label = f"{plan.design}: {plan.many} for prompts, {plan.several} for tokens"
            scenario = split(base, one, plan.many, self.kinds[second].side, plan.several)
        columns = {name: getattr(plan, name) for name in ("machines", "usd_per_hour", "power_w")}
        columns |= {"prompts": plan.many, "tokens": plan.several if second is not None else None}
        rate = self.options.rate or plan.belief
        return Candidate(label, plan.belief, columns, self.question.design(scenario, rate))


def _kind(question: Question, side: Side) -> Kind:
    """Raises UserErrors where the machine cannot hold the model."""
    (setup,) = WORKSHOP.groups(alone(question.scenario, side))
    per_gpu = side.hardware.power_cap_w or setup.gpu.tdp_w
    return Kind(side, setup.usd_per_hour, per_gpu * setup.num_gpus)
