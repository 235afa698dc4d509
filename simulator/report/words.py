"""The report's sentences and numbers: verdict first, in words that need no knowledge of the tool."""

from __future__ import annotations

from typing import Any

from simulator.metrics.summary import Summary
from simulator.report.diagnosis import missed_limits
from simulator.report.figures import PARTS
from simulator.report.svg import number, three_digits

Tile = dict[str, str]
_FEW = 20  # requests; fewer say nothing about a rate


def seconds(value: float | None) -> str:
    """With a unit that fits: 850 µs, 24.0 ms, 1.30 s, 95.0 s, 12.5 min, 7.20 h."""
    if value is None:
        return "–"
    if value == 0:
        return "0 s"
    if value >= 3 * 3600:
        return f"{three_digits(value / 3600)} h"
    if value >= 600:
        return f"{three_digits(value / 60)} min"
    if value >= 1:
        return f"{three_digits(value)} s"
    return f"{three_digits(value * 1e3)} ms" if value >= 1e-3 else f"{three_digits(value * 1e6)} µs"


def limit(value: float) -> str:
    """A limit as it was given: 2 s, 450 ms."""
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"


def percent(share: float | None) -> str:
    """One decimal; never rounded up to a perfect 100 %."""
    if share is None:
        return "–"
    if share in {0.0, 1.0}:
        return f"{share:.0%}".replace("%", " %")
    text = f"{share:.1%}"
    return ">99.9 %" if text == "100.0%" else text.replace("%", " %")


def plain(value: float | None) -> str:
    """Three digits or a dash."""
    return "–" if value is None else number(value)


def tone(summary: Summary) -> str:
    """CSS class of the verdict: good, warn or bad."""
    verdict = summary["stability"]["verdict"]
    if verdict != "stable" or not summary["requests"]["finished"]:
        return "bad" if verdict == "overloaded" else "warn"
    return "warn" if missed_limits(summary) or summary["requests"]["rejected"] else "good"


def state(summary: Summary) -> str:
    """The verdict in two or three words."""
    if summary["requests"]["arrived"] and summary["requests"]["rejected"] == summary["requests"]["arrived"]:
        return "serves nothing"
    verdict: str = summary["stability"]["verdict"]
    if verdict == "stable" and missed_limits(summary):
        return "stable, SLO missed"
    return "stable, requests rejected" if verdict == "stable" and summary["requests"]["rejected"] else verdict


def verdict_sentence(summary: Summary) -> str:
    """One sentence that a reader may repeat in a meeting."""
    counts, verdict = summary["requests"], summary["stability"]["verdict"]
    if not counts["arrived"]:
        return "No request arrived, so there is nothing to judge."
    if counts["rejected"] == counts["arrived"]:
        return f"This design serves nothing: every request was rejected {why_rejected(summary)}."
    served = plain(summary["throughput"]["request_per_s"])
    if verdict == "overloaded":
        rate = summary["stability"]["offered_request_per_s"]
        return (
            f"This design cannot keep up: requests arrive at {plain(rate)} per second and are served at {served}, so "
            "they wait longer and longer."
        )
    if not counts["finished"]:
        return "No request finished before the run ended, so there is no latency to report."
    if verdict == "backlogged":
        return (
            f"This run did not settle: {served} requests per second were served, but its latencies describe a backlog "
            "or a warm-up, not a steady state."
        )
    return f"{_keeps_up(summary)}{_slo_clause(summary['slo'], missed_limits(summary))}."


def _keeps_up(summary: Summary) -> str:
    counts, users = summary["requests"], summary["stability"]["closed_loop_users"]
    if counts["arrived"] < _FEW:
        some = f"{counts['arrived']} requests" if counts["arrived"] > 1 else "one request"
        return f"This design serves the {some} of this run, too few to judge a rate,"
    if users is None:
        text = f"This design keeps up with {plain(summary['throughput']['offered_request_per_s'])} requests per second"
    else:
        served = plain(summary["throughput"]["request_per_s"])
        text = f"With {_users(users)} this design serves {served} requests per second"
    if counts["rejected"]:
        share = counts["rejected"] / counts["arrived"]
        text += f", of which it rejects {percent(share)} {why_rejected(summary)},"
    return text


def why_rejected(summary: Summary) -> str:
    """``because they can never fit``, or the rules of the cluster that turned requests away, the strictest first."""
    rules: dict[str, int] = summary.get("rejections_run", {})
    if not rules:
        return "because they can never fit"
    reasons = ", ".join(sorted(rules, key=lambda reason: (-rules[reason], reason)))
    fits = sum(rules.values()) >= summary["requests"]["rejected"]
    return f"by its rules ({reasons})" + ("" if fits else " or because they can never fit")


def _users(users: int) -> str:
    return "one user at a time" if users == 1 else f"{users:,} concurrent users"


def _slo_clause(slo: dict[str, Any] | None, missed: list[str]) -> str:
    if slo is None:
        return " (no SLO was given to hold it against)"
    share = percent(slo["attainment"])
    if not missed:
        return f" and meets its SLO at p{slo['percentile']:g}: {share} of requests are within every limit"
    values = " and ".join(
        f"p{slo['percentile']:g} {name.upper()} is {seconds(slo['percentile_s'][name])} where "
        f"{limit(slo['limits_s'][name])} is allowed"
        for name in missed
    )
    return f" but misses its SLO: {values}; {share} of requests are within every limit"


def tiles(summary: Summary) -> list[Tile]:
    """Headline figures; latencies of an overloaded run are withheld."""
    traffic, engine, slo = summary["throughput"], summary["engine"], summary["slo"]
    users, offered = summary["stability"]["closed_loop_users"], plain(traffic["offered_request_per_s"])
    tokens = plain(traffic["total_tokens_per_s"])
    load = f"{offered} offered" if users is None else _users(users)
    out = [
        _tile("Served", plain(traffic["request_per_s"]), "requests/s", load),
        _tile("Output", plain(traffic["output_tokens_per_s"]), "tokens/s", f"{tokens} with input"),
    ]
    if slo is not None:
        out.append(_tile("Goodput", plain(summary["goodput_request_per_s"]), "requests/s", "within every SLO limit"))
        note = f"{slo['good_requests']:,} of {slo['judged_requests']:,} requests"
        out.append(_tile("SLO attainment", percent(slo["attainment"]), "", note))
    out += _latency_tiles(summary)
    out.append(
        _tile("KV usage", percent(engine["kv_usage"]["max"]), "", f"peak; {engine['preemptions_run']:,} preemptions")
    )
    replicas = f"{engine['replicas']:,} replica" + "s" * (engine["replicas"] > 1)
    out.append(_tile("Time in steps", percent(engine["utilization"]), "", f"busy, not full; {replicas}"))
    cost = summary["cost"]
    if cost is not None:
        value = cost["usd_per_million_output_tokens"]
        out.append(_tile("Cost", "–" if value is None else f"${value:,.2f}", "", "per million output tokens"))
    return out


def _latency_tiles(summary: Summary) -> list[Tile]:
    if not summary["requests"]["finished"]:
        return [_tile("Latency", "–", "", "no request finished")]
    verdict = summary["stability"]["verdict"]
    if verdict == "overloaded":
        return [_tile("Latency", "growing", "", "not steady: grows with the run")]
    which = "p99 of this run" if verdict == "backlogged" else "p99"
    shown = [(name, summary["latency"][key]) for name, key in _LATENCIES[:3]]
    return [_tile(f"{n} {which}", seconds(s["p99"]), "", f"median {seconds(s['p50'])}") for n, s in shown]


def _tile(name: str, value: str, unit: str, note: str) -> Tile:
    return {"name": name, "value": value, "unit": unit, "note": note}


def slo_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per limit: allowed, measured, met, share of requests within it. No percentile of an overloaded run."""
    slo = summary["slo"]
    if slo is None:
        return []
    overloaded = summary["stability"]["verdict"] == "overloaded"
    rows = []
    for name, allowed in slo["limits_s"].items():
        measured = slo["percentile_s"][name]
        known = measured is not None and not overloaded
        rows.append(
            {
                "name": name.upper(),
                "limit": limit(allowed),
                "measured": seconds(measured) if known else "–",
                "met": ("met" if measured <= allowed else "missed") if known else "not judged",
                "share": percent(slo["attainment_by_limit"][name]),
                "width": 100 * (slo["attainment_by_limit"][name] or 0.0),
            }
        )
    return rows


def breakdown_rows(summary: Summary) -> list[list[str]]:
    """Phase, mean time, share of the mean E2E; empty when nothing finished."""
    parts = summary["breakdown_mean_s"]
    if parts["queue"] is None:
        return []
    total = sum(parts.values())
    return [[label, seconds(parts[name]), percent(parts[name] / total if total else None)] for name, label, _ in PARTS]


_LATENCIES = (
    ("TTFT", "ttft_s"),
    ("TPOT", "tpot_s"),
    ("ITL", "itl_s"),
    ("E2E", "e2e_s"),
    ("Queue time", "queue_time_s"),
    ("Normalized latency, per token", "normalized_latency_s_per_token"),
)


def latency_rows(latency: dict[str, Any]) -> list[list[str]]:
    """Name, samples, mean, p50, p90, p95, p99, max."""
    keys = ("mean", "p50", "p90", "p95", "p99", "max")
    return [[name, f"{latency[key]['count']:,}", *(seconds(latency[key][k]) for k in keys)] for name, key in _LATENCIES]


def class_tables(summary: Summary) -> list[dict[str, Any]]:
    """Per labelled column, a row per class; latencies are left out when the run is overloaded."""
    overloaded = summary["stability"]["verdict"] == "overloaded"
    return [
        {"column": column, "rows": [_class_row(name, one, hide=overloaded) for name, one in classes.items()]}
        for column, classes in summary["classes"].items()
    ]


def _class_row(name: str, one: dict[str, Any], *, hide: bool) -> list[str]:
    latency = one["latency"]
    shown = [("ttft_s", "p50"), ("ttft_s", "p99"), ("tpot_s", "p50"), ("tpot_s", "p99"), ("e2e_s", "p99")]
    values = ["–" if hide else seconds(latency[key][p]) for key, p in shown]
    attained = percent(one["slo"]["attainment"]) if one["slo"] is not None else "–"
    return [name, f"{one['requests']['arrived']:,}", f"{one['requests']['finished']:,}", *values, attained]


def engine_rows(summary: Summary) -> list[tuple[str, str]]:
    """Name and value of what the engines did."""
    engine, counts = summary["engine"], summary["requests"]
    batch, wait, kv = engine["batch_size_requests"], engine["waiting_requests"], engine["kv_usage"]
    blocks = sorted(set(engine["num_gpu_blocks"]))
    size = " / ".join(f"{b:,}" for b in blocks[:4]) + (" / …" if len(blocks) > 4 else "")
    answers = summary.get("response_cache")
    known = [] if answers is None else [("answered by the response cache", known_answers(answers))]
    return [
        ("Requests arrived in the window", f"{counts['arrived']:,}"),
        *known,
        ("finished", f"{counts['finished']:,}"),
        ("rejected, failed", f"{counts['rejected']:,}, {counts['failed']:,}"),
        ("in flight at the end", f"{counts['in_flight']:,}"),
        ("Engine steps", f"{engine['num_steps']:,}"),
        (
            "Batch size while busy: mean, p99, max",
            f"{plain(batch['mean'])}, {plain(batch['p99'])}, {plain(batch['max'])}",
        ),
        ("Waiting requests: mean, p99, max", f"{plain(wait['mean'])}, {plain(wait['p99'])}, {plain(wait['max'])}"),
        ("Busy time in steps with prefill", percent(engine["prefill_step_time_share"])),
        ("KV usage while busy: mean, p99, max", f"{percent(kv['mean'])}, {percent(kv['p99'])}, {percent(kv['max'])}"),
        ("KV cache per replica", f"{size} blocks of {engine['block_size']} tokens"),
        ("Prefix hit ratio", percent(engine["prefix_hit_ratio_run"])),
        ("Preemptions, tokens recomputed", f"{engine['preemptions_run']:,}, {engine['recomputed_tokens_run']:,}"),
    ]


def known_answers(found: dict[str, Any]) -> str:
    """How many, and what that does to the latency of everybody."""
    of_all = seconds(found["all_e2e_s"]["mean"])
    return f"{found['hits']:,} ({percent(found['hit_ratio'])}); mean E2E with the others {of_all}"


_OPERATORS = 3  # whose errors stand at the top; all are in the provenance


def accuracy(provenance: dict[str, Any]) -> str:
    """How far the step times can be trusted, for the top of the page: the calibration and its stated error."""
    calibration = provenance.get("calibration")
    if calibration is None:
        return "not stated"
    if not isinstance(calibration, dict):
        return str(calibration)
    name = calibration.get("name")
    said = [f"calibration {name}" if name else str(calibration.get("source", "source not stated"))]
    if "transferred_from" in calibration:
        said.append(f"transferred from {calibration['transferred_from']}")
    error = str(calibration.get("held_out_error") or calibration.get("stated_error") or "not stated")
    by_operator = error.split(", ")
    if len(by_operator) > _OPERATORS + 1:
        error = f"{', '.join(by_operator[:_OPERATORS])}, {len(by_operator) - _OPERATORS} more under Provenance"
    said.append(f"held-out error: {error.replace('_', ' ')}" if name else f"error: {error}")
    if calibration.get("beyond_the_measurements"):
        said.append("extrapolated in part (see there)")
    return "; ".join(said)


def provenance_rows(provenance: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as flat rows, ``command`` apart."""
    rows: list[tuple[str, str]] = []
    for key, value in provenance.items():
        name = f"{prefix}{f'{key[:-2]} (s)' if key.endswith('_s') else key}".replace("_", " ")
        if key == "command" and not prefix:
            continue
        if isinstance(value, dict):
            rows += provenance_rows(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            rows += [(name, ", ".join(str(item) for item in value))] if value else []
        else:
            rows.append((name, "not stated" if value is None else str(value)))
    return rows
