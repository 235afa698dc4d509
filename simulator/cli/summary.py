"""The summary of a run on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from simulator.cli.console import out
from simulator.core.units import format_bytes, format_count, format_seconds
from simulator.report.words import known_answers, seconds

if TYPE_CHECKING:
    from simulator.scenario.result import Result

LATENCIES = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "queue_time_s": "queue time",
}
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
VERDICT_STYLE = {"stable": "bold green", "backlogged": "bold yellow", "overloaded": "bold red"}


def print_summary(result: Result) -> None:
    """What was simulated, the verdict, throughput, SLOs and latencies (none where they grow with the run)."""
    console, summary = out(), result.summary
    console.print(Text.assemble((str(result.scenario.name), "bold"), f"  {what(result)}"), soft_wrap=True)
    stability = summary["stability"]
    verdict = str(stability["verdict"])
    console.print(
        Text.assemble((verdict, VERDICT_STYLE.get(verdict, "bold")), f": {stability['reason']}"), soft_wrap=True
    )
    for note in (*result.trace.notes, *rejections(result)):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(facts_table(result))
    if verdict == "overloaded":
        console.print(f"[bold]latency[/]     {unsteady(stability)}", soft_wrap=True)
        return
    if not stability["latency_is_steady"]:
        console.print("[bold]latency[/]     not settled: the history of this run, not a property of the design")
    console.print(latency_table(summary))
    console.print(f"TTFT: {which_ttft(result)}", style="dim", markup=False, soft_wrap=True)


def rejections(result: Result) -> list[str]:
    """Rejected requests, by reason."""
    rules: dict[str, int] = result.summary.get("rejections_run", {})
    found = [f"{count:,} turned away: {reason}." for reason, count in sorted(rules.items(), key=lambda rule: -rule[1])]
    rejected = result.summary["requests"]["rejected"] - sum(rules.values())
    longest = result.setup.args.max_model_len
    why = f"prompt and output exceed max_model_len ({longest:,} tokens) or the whole KV cache."
    return [*found, f"{rejected:,} rejected: {why}"] if rejected > 0 else found


def unsteady(stability: dict[str, Any]) -> str:
    """Instead of percentiles that say how long the run was and nothing of the design."""
    first, last = stability["mean_ttft_of_first_tenth_s"], stability["mean_ttft_of_last_tenth_s"]
    text = "not steady: grows with the run, so percentiles mean nothing"
    if first is None:
        return f"{text}."
    return (
        f"{text}. TTFT is {format_seconds(first)} on average for the first tenth of the requests and "
        f"{format_seconds(last)} for the last."
    )


def which_ttft(result: Result) -> str:
    """Engine or client: what the API server adds by the preset, for prompts as long as this trace's."""
    overhead, prompt = result.setup.cost.overhead, result.trace.prompt_tokens
    added = float(overhead.request_s(prompt.mean())) if len(prompt) else 0.0
    if added < 1e-4:  # a fit that found nothing
        return "the engine's own; what an API server adds to it is not modelled by this preset."
    return f"the engine's own; a client over HTTP sees about {format_seconds(added)} more by this preset."


def what(result: Result) -> str:
    """``Llama-3.1-8B bfloat16 on 1 x H100-SXM``; of a cluster, each group."""
    if len(result.groups) > 1:
        return "; ".join(
            f"{g.name}: {g.replicas} x {g.model.name} on {g.num_gpus} x {g.gpu.name}" for g in result.groups
        )
    setup, spec = result.setup, result.scenario.model
    many = f"{setup.replicas} x " if setup.replicas > 1 else ""
    quantization = f" {spec.quantization}" if spec.quantization else ""
    dtype = "" if spec.dtype == "auto" else f" {spec.dtype}"
    return f"{many}{setup.model.name}{dtype}{quantization} on {setup.num_gpus} x {setup.gpu.name}"


def facts_table(result: Result) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in facts(result):
        table.add_row(name, Text(value))
    return table


def facts(result: Result) -> list[tuple[str, str]]:
    """The lines above the latencies, as (name, text)."""
    summary = result.summary
    counts, traffic, engine = summary["requests"], summary["throughput"], summary["engine"]
    ended = ", ".join(
        f"{counts[k]:,} {k.replace('_', ' ')}" for k in ("finished", *ENDINGS) if counts[k] or k == "finished"
    )
    running, of_many = _n(engine["running_requests"]["mean"]), " per replica" if engine["replicas"] > 1 else ""
    lines = [
        ("requests", f"{counts['arrived']:,} in {format_seconds(summary['window']['duration_s'])}: {ended}"),
        (
            "throughput",
            f"{_n(traffic['request_per_s'])} requests/s, {_n(traffic['output_tokens_per_s'])} output tokens/s",
        ),
        ("batch", f"{running} requests{of_many} on average, {_percent(engine['utilization'])} busy"),
        ("KV cache", _kv(result, engine)),
    ]
    if "response_cache" in summary:
        lines.insert(1, ("answers known", known_answers(summary["response_cache"])))
    drafts, job = summary.get("speculation"), summary.get("finetuning")
    if drafts is not None:
        lines.append(("speculation", f"{_n(drafts['mean_acceptance_length_run'])} tokens per request and step"))
    if job is not None:
        pace = f"{_n(job['tokens_per_s'])} tokens/s, {_percent(job['share_of_alone'])} of the pace without requests"
        lines.append(("fine-tuning", pace))
    slo, cost = summary["slo"], summary["cost"]
    if slo is not None:
        limits = ", ".join(f"{name.upper()} <= {format_seconds(limit)}" for name, limit in slo["limits_s"].items())
        shrinks = "; less the longer the run" if summary["stability"]["verdict"] == "overloaded" else ""
        lines.append(("SLO", f"{_percent(slo['attainment'])} of requests meet {limits} ({slo['name']}){shrinks}"))
        lines.append(("goodput", f"{_n(summary['goodput_request_per_s'])} requests/s{shrinks}"))
    if cost is not None:
        each, hour = cost["usd_per_million_output_tokens"], f"${cost['usd_per_hour']:.2f}/h"
        lines.append(("cost", hour if each is None else f"${_n(each)} per million output tokens at {hour}"))
    return [*lines, *elastic(summary)]


def elastic(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What replicas that come and go saved, cost and lost; energy and carbon."""
    lines = []
    scaling, energy, carbon = summary.get("scaling"), summary.get("energy"), summary.get("carbon")
    if scaling is not None:
        saved = scaling["saved_replica_hours_share"]
        text = f"{_n(scaling['mean_replicas'])} replicas on average, {scaling['peak_replicas']} at most; "
        text += f"{_n(scaling['replica_hours'])} replica-hours, {_percent(saved)} less than the most all the time; "
        each = scaling["mean_cold_start_s"]
        text += f"{scaling['cold_starts']:,} cold starts" + ("" if each is None else f" of {format_seconds(each)}")
        lines.append(("scaling", text))
        if scaling["failures"] or scaling["reclaims"]:
            lost, times = scaling["requests_lost_once_or_more"], scaling["requests_lost_in_all"]
            text = (
                f"{scaling['failures']:,} failures, {scaling['reclaims']:,} reclaims; {lost:,} requests computed again"
            )
            lines.append(("faults", text + (f", {times:,} times in all" if times > lost else "")))
    if energy is not None and energy["joules_per_request"] is not None:
        text = f"{_n(energy['kwh'])} kWh, {_n(energy['joules_per_request'])} J per request"
        if carbon is not None and carbon["gco2_per_request"] is not None:
            text += f"; {_n(carbon['gco2'] / 1000)} kg CO2, {_n(carbon['gco2_per_request'])} g per request"
        lines.append(("energy", text))
    return lines


ENDINGS = ("rejected", "failed", "in_flight")


def _kv(result: Result, engine: dict[str, Any]) -> str:
    tokens = engine["num_gpu_blocks"][0] * engine["block_size"]
    parts = [f"{tokens:,} tokens ({format_bytes(result.setup.memory.kv_cache_bytes)})"]
    if engine["replicas"] > 1:
        equal = len(set(engine["num_gpu_blocks"])) == 1
        parts[0] += " per replica" if equal else f" on the first of {engine['replicas']} replicas"
    parts.append(f"{_percent(engine['kv_usage']['mean'])} used")
    if result.setup.args.enable_prefix_caching and result.trace.prefix is not None:
        parts.append(f"{_percent(engine['prefix_hit_ratio_run'])} prefix hits")
    parts.append(f"{engine['preemptions']:,} preemptions")
    return ", ".join(parts)


def latency_table(summary: dict[str, Any]) -> Table:
    table = Table(header_style="bold")
    table.add_column("latency")
    for name in STATISTICS:
        table.add_column(name, justify="right")
    for key, title in LATENCIES.items():
        values = summary["latency"][key]
        table.add_row(title, *(seconds(values[name]) for name in STATISTICS))
    return table


def _n(value: float | None) -> str:
    return "-" if value is None else format_count(round(value, 1) if value >= 100 else value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
