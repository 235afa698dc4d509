"""From a question to an optimiser's answer: it searches, then the candidates it likes best are simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.core.errors import UserError
from simulator.planning.ledger import Ledger
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.file import OptimiserFile
from simulator.planning.optimisers.optimiser import Optimiser, Question, Tick, silent
from simulator.planning.store import Store


def optimise(file: OptimiserFile, *, jobs: int = 1, folder: Path | None = None, tick: Tick = silent) -> Optimised:
    """The answer to a plan that names an optimiser. folder: keeps every run that ends. Raises UserErrors."""
    plan, first = file.plan, file.scenario.seed
    store = None if folder is None else Store(folder, "plan")
    question = Question(
        file.scenario, tuple(range(first, first + plan.replications)), plan.tolerance, plan.confidence,
        Ledger(None if store is None else store.path), jobs, tick,
    )  # fmt: skip
    try:
        return ask(file.kind(question, file.options), plan.optimiser, plan.top, name=file.name, said=plan.question)
    except UserError as error:
        place = error.where or ""
        where = place if str(file.path) in place else f"{file.path}: {place}".removesuffix(": ")
        raise type(error)(error.message, where=where, remedy=error.remedy) from error
    finally:
        if store is not None:
            store.close()


def ask(optimiser: Optimiser[Any], optimiser_name: str, top: int, *, name: str = "", said: str = "") -> Optimised:
    """The optimiser's candidates, the first ``top`` of them simulated. Raises UserErrors."""
    candidates = tuple(optimiser.search())
    places = [at for at, one in enumerate(candidates) if one.design is not None][:top]
    found = dict(zip(places, optimiser.simulate([candidates[at] for at in places]), strict=True))
    return Optimised(name or optimiser_name, said, optimiser, optimiser_name, candidates, found)
