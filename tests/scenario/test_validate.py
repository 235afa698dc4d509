from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import ScenarioError, UserError
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec
from simulator.scenario.load import anchored, digest, to_dict, to_yaml
from simulator.scenario.source import Source, override, parse_source
from simulator.scenario.validate import json_schema, validate
from simulator.scheduling.args import EngineArgs

TEXT = """\
name: demo
model: {name: meta-llama/Llama-3.1-8B}
hardware: H100-SXM
engine:
  max_num_seqs: 8
workload:
  preset: {name: azure-conv, num_requests: 10}
slo: mlperf-llama3.1-8b-server
"""

MIXED = """\
model: {config: config.json}
hardware: {gpu: H100-SXM, price_per_gpu_hour: 2.5}
workload:
  synthetic:
    num_requests: 2k
    arrivals: {process: gamma, rate: 3, burstiness: 0.5}
    lengths: {prompt: 512, output: {distribution: lognormal, median: 100, sigma: 1}}
    sessions: {turns: {distribution: geometric, mean: 3}, think_time_s: 10}
  transforms: [{window: {start_s: 1 min, end_s: 1 h}}, {scale_rate: 2}, {head: 100}]
slo: {ttft_s: 500 ms, tpot_s: 0.05}
run: {horizon_s: 10 min}
"""


def refusal(text: str, *sets: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        validate(override(parse_source(text, name="demo.yaml"), sets))
    return caught.value


def test_shorthands_units_and_defaults() -> None:
    demo, mixed = validate(parse_source(TEXT)), validate(parse_source(MIXED))
    assert demo.hardware.gpu == "H100-SXM"
    assert demo.slo is not None
    assert demo.slo.preset == "mlperf-llama3.1-8b-server"
    assert demo.engine.block_size == 16
    assert mixed.slo is not None
    assert mixed.slo.ttft_s == 0.5
    assert mixed.run.horizon_s == 600
    assert mixed.workload.synthetic is not None
    assert mixed.workload.synthetic.num_requests == 2000
    assert mixed.workload.transforms[0].window is not None
    assert mixed.workload.transforms[0].window.end_s == 3600


def test_a_scenario_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        validate(parse_source(TEXT)).engine.block_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "message", "remedy"),
    [
        ("engine.max_num_seq=3", "engine.max_num_seq: unknown field 'max_num_seq'", "Did you mean 'max_num_seqs'?"),
        ("engine.max-num-seqs=3", "unknown field 'max-num-seqs'", "Did you mean 'max_num_seqs'?"),
        ("max_num_seqs=3", "unknown field 'max_num_seqs'", "Did you mean 'engine.max_num_seqs'?"),
        ("zzz=3", "unknown field 'zzz'", "Fields here: cluster, description, energy, engine,"),
        ("engine.max_num_seqs='8'", "'8' is not a whole number", "Write it without quotes."),
        ("engine.max_num_seqs=8.5", "8.5 is not a whole number", None),
        ("engine.max_num_seqs=true", "true is not a whole number", None),
        ("engine.max_num_seqs=0", "0 is out of range: it must be at least 1", None),
        ("engine.gpu_memory_utilization=1.1", "1.1 is out of range: it must be at most 1", None),
        ("engine.watermark=.nan", "nan is not a finite number", None),
        ("engine.pipeline_parallel_size=16", "16 is out of range: it must be at most 15", None),
        (
            "engine.scheduling_policy=FCFS",
            "'FCFS' is not one of the values",
            "Did you mean 'fcfs'? Values: fcfs, priority.",
        ),
        ("engine.enable_prefix_caching=yes", "'yes' is not true or false", None),
        ("engine=3", "engine: 3 is not a mapping of fields", None),
        ("engine=null", "engine: nothing (null) is not a mapping", None),
        ("engine.policy=3", "3 is not text", 'Write it in quotes: "3".'),
        ("model={}", "give exactly one of 'name'", None),
        ("model.config=x.json", "give exactly one of 'name'", None),
        ("hardware={}", "the field 'gpu' is missing", "gpu: Name in the catalogue"),
        ("run.horizon_s=10 parsecs", "unknown unit 'parsecs'", None),
        ("run.horizon_s=80GiB", "unknown unit 'GiB'", None),
        ("workload.preset.num_requests=2.5", "2.5 is not a whole number", None),
        ("workload.preset.num_requests=1000G", "must be at most 1000000000", None),
        ("workload.trace=x.csv", "give exactly one of trace, preset and synthetic; this has 2", None),
        ("workload={}", "give exactly one of trace, preset and synthetic; this has 0", None),
        ("workload.transforms=[{head: 3, sample: 0.5}]", "this sets 2 (sample, head)", None),
        ("workload.transforms=[{}]", "this sets 0", None),
        ("workload.transforms=[{hed: 3}]", "workload.transforms.0.hed: unknown field", "Did you mean 'head'?"),
        ("workload.transforms=[{window: {start_s: 5, end_s: 5}}]", "end_s (5) must be after start_s (5)", None),
        ("workload.transforms={head: 3}", "a mapping is not a list", None),
        ("slo={}", "set at least one limit or a preset", None),
        ("slo.presett=x", "slo.presett: unknown field 'presett'", "Did you mean 'preset'?"),
        ("seed=-1", "-1 is out of range", None),
        ("name=../etc", "'../etc' is not made of letters", None),
    ],
)
def test_every_complaint_names_the_path_the_value_and_the_remedy(
    setting: str, message: str, remedy: str | None
) -> None:
    error = refusal(TEXT, setting)
    assert message in str(error)
    assert (error.where or "").startswith((f"--set {setting}", "demo.yaml:"))
    if remedy is not None:
        assert (error.remedy or "").startswith(remedy)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("arrivals.burstines=2", "arrivals.burstines: unknown field 'burstines'.\n  Did you mean 'burstiness'?"),
        ("arrivals.process=posson", "unknown process 'posson'.\n  Did you mean 'poisson'?"),
        ("arrivals={rate: 3}", "the field 'process' is missing"),
        ("arrivals=3", "workload.synthetic.arrivals: 3 is not a mapping"),
        ("arrivals.rate=0", "must be more than 0"),
        ("arrivals={process: rate_curve, times_s: [0, 5], rates: [1]}", "rate_curve"),
        ("lengths.output.sigma=-1", "-1 is out of range"),
        ("lengths.prompt=-1", "-1 is out of range"),
        ("lengths.prompt={distribution: uniform, low: 9, high: 3}", "need 0 <= low <= high"),
        ("lengths.output={distribution: quantiles, q: [0, 2], values: [1, 2]}", "2 is out of range"),
        ("sessions.think_time_s=x", "'x' is not a mapping"),
    ],
)
def test_synthetic_workloads_are_checked_where_they_are_written(setting: str, message: str) -> None:
    assert message in str(refusal(MIXED, f"workload.synthetic.{setting}"))


def test_several_problems_are_listed_in_the_order_of_the_file() -> None:
    text = "zzz: 1\n" + TEXT.replace("max_num_seqs: 8", "max_num_seqs: x\n  block_size: y")
    lines = [line for line in str(refusal(text)).splitlines() if line.startswith("demo.yaml")]
    assert [int(line.split(":")[1]) for line in lines] == [1, 6, 7]


MADE = {"speculation"}  # engine arguments that are made of other fields: speculative_config


def test_every_engine_argument_is_a_field_and_every_field_is_described() -> None:
    assert {f.name for f in dataclasses.fields(EngineArgs)} - MADE <= {f.name for f in dataclasses.fields(EngineSpec)}

    def undescribed(schema: object, path: str = "") -> list[str]:
        if isinstance(schema, list):
            return [name for item in schema for name in undescribed(item, path)]
        if not isinstance(schema, dict):
            return []
        found = [
            f"{path}.{name}"
            for name, child in schema.get("properties", {}).items()
            if "description" not in child and "const" not in child
        ]
        return found + [name for key, child in schema.items() for name in undescribed(child, f"{path}.{key}")]

    assert undescribed(json_schema()) == []


def test_defaults_that_vllm_does_not_choose_by_gpu_are_those_of_engine_args() -> None:
    spec, args = EngineSpec(), EngineArgs()
    for field in dataclasses.fields(EngineArgs):
        if field.name not in MADE and getattr(spec, field.name) is not None:
            assert getattr(spec, field.name) == getattr(args, field.name), field.name


class TestRoundTrip:
    @pytest.mark.parametrize("text", [TEXT, MIXED])
    def test_a_scenario_written_and_read_is_the_same(self, text: str) -> None:
        scenario = validate(parse_source(text))
        assert validate(parse_source(to_yaml(scenario))) == scenario

    @given(
        st.text(alphabet=st.characters(exclude_categories=["C"]), max_size=30)
        | st.sampled_from(["1e5", "on", "~", "0x1"])
    )
    def test_any_text_survives(self, description: str) -> None:
        scenario = dataclasses.replace(validate(parse_source(TEXT)), description=description)
        assert validate(parse_source(to_yaml(scenario))).description == description

    @given(st.floats(1e-300, 1e300))
    def test_any_number_survives(self, rate: float) -> None:
        source = override(parse_source(MIXED), [f"workload.transforms=[{{scale_rate: {rate!r}}}]"])
        scenario = validate(source)
        assert scenario.workload.transforms[0].scale_rate == rate
        assert validate(parse_source(to_yaml(scenario))) == scenario


class TestDigest:
    def test_names_outputs_and_folders_do_not_count_but_the_rest_does(self) -> None:
        base = parse_source(TEXT.replace("preset: {name: azure-conv, num_requests: 10}", "trace: {path: a/x.csv}"))

        def of(*sets: str) -> str:
            return digest(validate(override(base, sets)))

        assert of() == of("name=other", "output.steps=all", "description=words", "workload.trace.path=b/x.csv")
        changes = ["seed=1", "engine.block_size=32", "workload.trace.path=a/y.csv", "run.mode=step", "slo=null"]
        assert len({of(), *(of(change) for change in changes)}) == 1 + len(changes)


class TestSchema:
    def test_it_is_a_schema_and_accepts_what_we_accept(self) -> None:
        jsonschema.Draft202012Validator.check_schema(json_schema())
        validator = jsonschema.Draft202012Validator(json_schema())
        for text in (TEXT, MIXED):
            source = parse_source(text)
            assert not list(validator.iter_errors(source.data))
            assert not list(validator.iter_errors(to_dict(validate(source))))

    @pytest.mark.parametrize("change", [{"zzz": 1}, {"seed": "x"}, {"engine": {"max_num_seqs": 0}}, {"model": 3}])
    def test_it_refuses_what_we_refuse(self, change: dict[str, object]) -> None:
        data = {**parse_source(TEXT).data, **change}
        assert list(jsonschema.Draft202012Validator(json_schema()).iter_errors(data))


def paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in items for found in [(*path, key), *paths(child, (*path, key))]]


MIXED_PATHS = sorted(paths(parse_source(MIXED).data), key=str)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10 ms", "2k", "fixed"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MIXED_PATHS), JUNK)
def test_any_value_anywhere_is_accepted_or_refused_with_its_place(path: tuple[object, ...], junk: object) -> None:
    data = json.loads(json.dumps(parse_source(MIXED).data))
    here = data
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = junk
    try:
        scenario = validate(Source("fuzz.yaml", parse_source(MIXED).folder, data))
    except ScenarioError as error:
        assert "fuzz.yaml" in str(error)
    else:
        assert isinstance(scenario, Scenario)
        assert validate(parse_source(to_yaml(scenario))) == scenario


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_garbled_text_is_a_located_error_and_never_a_traceback(data: st.DataObject) -> None:
    text = list(MIXED)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.text(max_size=3))
    try:
        anchored(parse_source("".join(text), name="fuzz.yaml"))
    except UserError as error:
        assert "fuzz.yaml" in str(error)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_arbitrary_text_is_a_located_error(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"fuzz\.yaml"):
        validate(parse_source(text, name="fuzz.yaml"))


def test_our_dialect_reads_what_a_plain_yaml_writer_writes() -> None:
    data = parse_source(TEXT).data
    assert parse_source(yaml.safe_dump(data)).data == data
