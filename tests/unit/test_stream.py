"""A stream knows its schema, refuses what cannot work on the line that says it, and adds
exactly the operators that were asked for."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from helios_ray.aggregates import count, max_, mean, min_, sum_
from helios_ray.connectors.base import Sink
from helios_ray.elements import Batch
from helios_ray.environment import StreamExecutionEnvironment
from helios_ray.errors import ConfigError, DuplicateUidError, MissingColumnError, PlanError
from helios_ray.operators.base import OperatorContext
from helios_ray.plan.physical import Chain, Partitioning, PhysicalPlan
from helios_ray.stream import DataStream, KeyedStream
from tests.unit.plan.fakes import FLIGHTS, FakeSink, FakeSource

HERE = r"test_stream\.py:\d+"


@pytest.fixture
def env() -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment()


@pytest.fixture
def flights(env: StreamExecutionEnvironment) -> DataStream:
    return env.from_source(FakeSource(), uid="flights")


def plan(env: StreamExecutionEnvironment) -> PhysicalPlan:
    return env.compile("job").plan


def only_chain(env: StreamExecutionEnvironment) -> Chain:
    [chain] = plan(env).chains
    return chain


def run(chain: Chain, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Push rows through the operators of a chain, as a task would."""
    batches = [Batch(pa.RecordBatch.from_pylist(list(rows), schema=FLIGHTS))]
    for spec in chain.operators:
        operator = spec.factory()
        operator.open(OperatorContext(uid=spec.uid))
        batches = [out for b in batches for out in operator.process_batch(b) if out.tag is None]
    return [row for b in batches for row in b.data.to_pylist()]


AA = {"carrier": "AA", "origin": "JFK", "delay": 3.0}
UA = {"carrier": "UA", "origin": "EWR", "delay": 30.0}


# ------------------------------------------------------------------------------------ schemas


def test_a_schema_is_carried_from_operator_to_operator(flights: DataStream):
    late = (
        flights.filter(pc.field("delay") > 15)
        .with_columns(hours=pc.field("delay") / 60.0)
        .select("carrier", "hours", far=pc.field("hours") > 2)
    )
    assert late.schema == pa.schema(
        [("carrier", pa.string()), ("hours", pa.float64()), ("far", pa.bool_())]
    )


def test_the_schema_of_an_aggregate_is_its_keys_and_its_results(flights: DataStream):
    by = flights.key_by("origin", "carrier").aggregate(
        n=count(), worst=max_("delay"), total=sum_("delay"), usual=mean("delay")
    )
    assert by.schema == pa.schema(
        [
            ("origin", pa.string()),
            ("carrier", pa.string()),
            ("n", pa.int64()),
            ("worst", pa.float64()),
            ("total", pa.float64()),
            ("usual", pa.float64()),
        ]
    )


def test_a_row_function_hides_the_schema_unless_it_is_declared(flights: DataStream):
    out = pa.schema([("item", pa.string())])
    for method in (flights.map, flights.flat_map):
        assert method(lambda row: row).schema is None
        assert method(lambda row: row, schema=out).schema == out
    assert flights.map_batches(lambda b: b).schema is None
    assert flights.map_batches(lambda b: b, schema=out).schema == out


def test_nothing_is_checked_against_a_schema_that_nobody_knows(flights: DataStream):
    hidden = flights.map(lambda row: row)
    assert hidden.filter(pc.field("anything") > 3).schema is None
    assert hidden.key_by("anything").aggregate(n=count()).schema is None
    assert hidden.select("anything").schema is None


def test_keyed_rebalanced_and_broadcast_streams_keep_their_schema(flights: DataStream):
    for stream in (flights.key_by("carrier"), flights.rebalance(), flights.broadcast()):
        assert stream.schema == FLIGHTS


def test_a_stream_shows_its_schema(flights: DataStream):
    assert repr(flights) == "DataStream[carrier: string, origin: string, delay: double]"
    assert repr(flights.key_by("carrier")).startswith("KeyedStream[")


# ---------------------------------------------------------------------------- missing columns


@pytest.mark.parametrize(
    ("method", "misuse"),
    [
        ("key_by", lambda s: s.key_by("carier")),
        ("filter", lambda s: s.filter(pc.field("carier") == "AA")),
        ("select", lambda s: s.select("delay", "carier")),
        ("select", lambda s: s.select(x=pc.field("carier"))),
        ("with_columns", lambda s: s.with_columns(x=pc.field("carier"))),
        ("aggregate", lambda s: s.key_by("origin").aggregate(top=max_("carier"))),
        ("branch", lambda s: s.branch(aa=pc.field("carier") == "AA")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misspelt_column_is_refused_on_its_line_with_the_nearest_match(
    flights: DataStream, method: str, misuse: Any
):
    with pytest.raises(MissingColumnError, match=rf"{method} at .*{HERE}.*Did you mean 'carrier'"):
        misuse(flights)


# --------------------------------------------------------------------------------- operators


def test_rows_take_the_operators_in_the_order_they_were_written(
    env: StreamExecutionEnvironment, flights: DataStream
):
    (
        flights.filter(pc.field("delay") > 1)
        .filter(lambda row: row["carrier"] != "UA")
        .map(lambda row: {"carrier": row["carrier"], "delay": row["delay"]})
        .flat_map(lambda row: [row, row])
        .map_batches(lambda t: t, batch_format="pyarrow")
        .with_columns(double=pc.field("delay") * 2.0)
        .select("carrier", who="carrier", double=pc.field("double"))
        .sink_to(FakeSink(), uid="out")
    )
    expected = {"carrier": "AA", "who": "AA", "double": 6.0}
    assert run(only_chain(env), AA, UA) == [expected, expected]


def test_each_subtask_and_epoch_gets_an_operator_of_its_own(
    env: StreamExecutionEnvironment, flights: DataStream
):
    flights.map(lambda row: row, uid="m").sink_to(FakeSink(), uid="out")
    [spec] = only_chain(env).operators
    assert spec.factory() is not spec.factory()


class Scale:
    def __init__(self, by: float, *, plus: float = 0.0) -> None:
        self.by, self.plus = by, plus

    def __call__(self, batch: dict[str, Any], column: str, *, minus: float) -> dict[str, Any]:
        return {"out": batch[column] * self.by + self.plus - minus}


def test_map_batches_takes_ray_datas_arguments(
    env: StreamExecutionEnvironment, flights: DataStream
):
    flights.map_batches(
        Scale,
        batch_size=1,
        fn_args=("delay",),
        fn_kwargs={"minus": 1.0},
        fn_constructor_args=(10.0,),
        fn_constructor_kwargs={"plus": 5.0},
        concurrency=2,
        num_gpus=0.5,
        uid="scale",
    ).sink_to(FakeSink(), uid="out")
    chain = plan(env).chain("scale")
    assert (chain.parallelism, chain.resources.num_gpus) == (2, 0.5)
    assert run(chain, AA, UA) == [{"out": 34.0}, {"out": 304.0}]


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ConfigError, {"concurrency": 2, "parallelism": 3}, "mean the same thing and differ"),
        (ConfigError, {"concurrency": 0}, "concurrency must be a whole number from 1, got 0"),
        (ConfigError, {"batch_size": -1}, "batch_size must be"),
        (ConfigError, {"batch_format": "polars"}, "batch_format must be"),
        (ConfigError, {"fn_constructor_args": (1,)}, "fn_constructor_args"),
    ],
)
def test_map_batches_refuses_arguments_that_do_not_fit(
    flights: DataStream, error: type[Exception], arguments: dict[str, Any], message: str
):
    with pytest.raises(error, match=message):
        flights.map_batches(lambda batch: batch, **arguments)


def test_a_keyed_stream_can_be_mapped_and_its_rows_still_go_by_key(
    env: StreamExecutionEnvironment, flights: DataStream
):
    keyed = flights.key_by("carrier", "origin")
    assert isinstance(keyed, KeyedStream)
    assert keyed.keys == ("carrier", "origin")
    keyed.map(lambda row: row, uid="m").sink_to(FakeSink(), uid="out")
    [edge] = plan(env).edges
    assert (edge.partitioning, edge.keys) == (Partitioning.HASH, ("carrier", "origin"))


EXACT = {"n": count(), "known": count("delay"), "first": min_("delay"), "worst": max_("delay")}
ROUNDED = {"total": sum_("delay"), "usual": mean("delay")}


@pytest.mark.parametrize(
    ("aggregations", "asked", "before_shuffle"),
    [
        (EXACT, {}, True),
        (EXACT, {"emit": "final"}, True),
        (EXACT, {"emit": "every"}, False),
        (EXACT, {"local_aggregation": False}, False),
        ({"miles": sum_("distance")}, {}, True),
        (EXACT | ROUNDED, {}, False),
        (EXACT | ROUNDED, {"local_aggregation": True}, True),
        ({"usual": mean("distance")}, {}, False),
    ],
)
def test_rows_are_aggregated_before_the_shuffle_where_that_cannot_change_a_digit(
    env: StreamExecutionEnvironment,
    aggregations: dict[str, Any],
    asked: dict[str, Any],
    before_shuffle: bool,
):
    source = FakeSource(FLIGHTS.append(pa.field("distance", pa.int32())))
    flights = env.from_source(source, uid="flights")
    flights.key_by("carrier").aggregate(aggregations, uid="by", **asked).sink_to(
        FakeSink(), uid="out"
    )
    assert ("by.local" in plan(env).chain("flights").uids) == before_shuffle


def test_sums_of_a_column_whose_type_nobody_knows_are_not_added_before_the_shuffle(
    env: StreamExecutionEnvironment, flights: DataStream
):
    hidden = flights.map(dict, uid="m")
    hidden.key_by("k").aggregate(total=sum_("x"), uid="by").sink_to(FakeSink(), uid="out")
    assert plan(env).chain("flights").uids == ("flights", "m")


def test_a_key_named_like_a_partial_result_is_no_reason_to_refuse_a_job(
    env: StreamExecutionEnvironment, flights: DataStream
):
    renamed = flights.select({"n.count": "carrier"}, uid="s")
    renamed.key_by("n.count").aggregate(n=count(), uid="by").sink_to(FakeSink(), uid="out")
    assert plan(env).chain("flights").uids == ("flights", "s")


def test_aggregating_twice_every_row_at_once_is_refused(flights: DataStream):
    with pytest.raises(ConfigError, match="emit='every'"):
        flights.key_by("carrier").aggregate(n=count(), emit="every", local_aggregation=True)


def drive(plan: PhysicalPlan, state: Any = None) -> tuple[list[dict[str, Any]], Any]:
    """Push a batch through both chains of a keyed aggregate; its last rows and its state."""
    rows = [AA, UA, AA, {**AA, "delay": None}]
    batches = [Batch(pa.RecordBatch.from_pylist(rows, schema=FLIGHTS))]
    for spec in (*plan.chain("flights").operators, *plan.chain("by").operators):
        operator = spec.factory()
        operator.open(OperatorContext(uid=spec.uid))
        if spec.uid == "by" and state is not None:
            operator.restore(state)
        batches = [out for b in batches for out in operator.process_batch(b)]
        if spec.uid == "by":
            snapshot = operator.snapshot()
        operator.close()
    return [row for b in batches for row in b.data.to_pylist()], snapshot


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_an_aggregate_resumes_whether_or_not_its_local_half_runs_before_the_shuffle(
    before: bool, after: bool
):
    """Other readers of its rows come and go between two runs of a job, and move that half."""

    def draw(alone: bool) -> PhysicalPlan:
        env = StreamExecutionEnvironment()
        flights = env.from_source(FakeSource(), uid="flights")
        if not alone:
            flights.sink_to(FakeSink(), uid="raw")
        flights.key_by("carrier").aggregate(EXACT, uid="by").sink_to(FakeSink(), uid="out")
        assert ("by.local" in plan(env).chain("flights").uids) == alone
        return plan(env)

    first, state = drive(draw(before))
    again, _ = drive(draw(after), state)
    assert first == [
        {"carrier": "AA", "n": 3, "known": 2, "first": 3.0, "worst": 3.0},
        {"carrier": "UA", "n": 1, "known": 1, "first": 30.0, "worst": 30.0},
    ]
    assert again == [
        {"carrier": "AA", "n": 6, "known": 4, "first": 3.0, "worst": 3.0},
        {"carrier": "UA", "n": 2, "known": 2, "first": 30.0, "worst": 30.0},
    ]


def test_aggregating_before_the_shuffle_can_be_turned_off_for_the_job(
    env: StreamExecutionEnvironment, flights: DataStream
):
    flights.key_by("carrier").aggregate(EXACT, uid="by").sink_to(FakeSink(), uid="out")
    env.disable_local_aggregation()
    assert plan(env).chain("flights").uids == ("flights",)


def test_one_aggregate_has_a_short_form(flights: DataStream):
    by = flights.key_by("carrier")
    named = [by.count(), by.sum("delay"), by.min("delay"), by.max("delay"), by.mean("delay")]
    assert [s.schema.names[-1] for s in named] == [
        "count",
        "sum_delay",
        "min_delay",
        "max_delay",
        "mean_delay",
    ]


def test_reduce_keeps_one_row_per_key(env: StreamExecutionEnvironment, flights: DataStream):
    worst = flights.key_by("carrier").reduce(
        lambda a, b: a if a["delay"] >= b["delay"] else b, uid="worst"
    )
    assert worst.schema == FLIGHTS
    worst.sink_to(FakeSink(), uid="out")
    rows = run(plan(env).chain("worst"), AA, UA, {**AA, "delay": 9.0})
    assert {row["carrier"]: row["delay"] for row in rows} == {"AA": 9.0, "UA": 30.0}


# ----------------------------------------------------------------------------------- branches


def test_branches_are_reached_by_attribute_and_by_name(flights: DataStream):
    parts = flights.branch(late=pc.field("delay") > 15, lost=lambda row: row["delay"] is None)
    assert list(parts) == ["late", "lost", "rest"]
    assert len(parts) == 3
    assert "late" in parts
    assert parts.late is parts["late"]
    assert parts.rest.schema == parts.lost.schema == FLIGHTS
    assert "lost" in dir(parts)


def test_each_branch_is_an_edge_with_its_name_and_rest_is_the_main_output(
    env: StreamExecutionEnvironment, flights: DataStream
):
    parts = flights.branch(late=pc.field("delay") > 15, early=pc.field("delay") < 0)
    parts.late.sink_to(FakeSink(), uid="late")
    parts.early.sink_to(FakeSink(), uid="early")
    parts.rest.sink_to(FakeSink(), uid="rest")
    assert {(e.tag, e.downstream) for e in plan(env).edges} == {
        ("late", "late"),
        ("early", "early"),
    }
    assert plan(env).chain("flights").uids == ("flights", "branch-1", "rest")
    assert run(plan(env).chain("flights"), AA, UA) == [AA]


def test_rows_whose_predicate_raises_can_go_to_dead_letters(
    env: StreamExecutionEnvironment, flights: DataStream
):
    parts = flights.branch(
        {"name": lambda row: row["nothing"]}, uid="split", name="by name", on_error="dead_letter"
    )
    parts.rest.dead_letters().sink_to(FakeSink(), uid="bad")
    [edge] = plan(env).edges
    assert (edge.operator, edge.tag) == ("split", "dead_letter")
    with pytest.raises(ConfigError, match=r"branch\(\{'name': \.\.\.\}\)"):
        flights.branch(name=lambda row: row["delay"])  # type: ignore[arg-type]


def test_a_misspelt_branch_is_told_the_nearest(flights: DataStream):
    parts = flights.branch(late=pc.field("delay") > 15)
    with pytest.raises(AttributeError, match="Did you mean 'late'"):
        _ = parts.lates
    with pytest.raises(PlanError, match="Did you mean 'late'"):
        _ = parts["lates"]


@pytest.mark.parametrize("name", ["rest", "dead_letter", "_private"])
def test_names_that_are_taken_cannot_name_a_branch(flights: DataStream, name: str):
    with pytest.raises(PlanError, match=f"{name!r} cannot name a branch"):
        flights.branch({name: pc.field("delay") > 15})


def test_a_branch_needs_a_predicate(flights: DataStream):
    with pytest.raises(PlanError, match="at least one"):
        flights.branch()
    with pytest.raises(PlanError, match="expected a function"):
        flights.branch(late=True)  # type: ignore[arg-type]


# ------------------------------------------------------------------------ errors and dead letters


def test_dead_letters_are_a_stream_of_their_own(
    env: StreamExecutionEnvironment, flights: DataStream
):
    checked = flights.map(lambda row: row["nothing"], on_error="dead_letter", uid="checked")
    checked.sink_to(FakeSink(), uid="good")
    letters = checked.dead_letters()
    assert {"row", "error"} <= set(letters.schema.names)
    letters.sink_to(FakeSink(), uid="bad")
    [edge] = plan(env).edges
    assert (edge.operator, edge.downstream) == ("checked", "bad")

    [spec] = plan(env).chain("flights").operators
    operator = spec.factory()
    operator.open(OperatorContext(uid=spec.uid))
    out = operator.process_batch(Batch(pa.RecordBatch.from_pylist([AA], schema=FLIGHTS)))
    assert [b.tag for b in out] == [edge.tag]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_dead_letters_need_an_operator_that_keeps_them(flights: DataStream, on_error: Any):
    with pytest.raises(PlanError, match="on_error='dead_letter'"):
        flights.map(lambda row: row, on_error=on_error).dead_letters()
    with pytest.raises(PlanError, match="on_error='dead_letter'"):
        flights.key_by("carrier").dead_letters()


def test_an_unknown_policy_for_errors_is_refused(flights: DataStream):
    with pytest.raises(ConfigError, match="'ignore'"):
        flights.map(lambda row: row, on_error="ignore")  # type: ignore[arg-type]


def test_a_side_output_that_is_not_there_is_refused_naming_those_that_are(flights: DataStream):
    stream = flights.map(lambda row: row, on_error="dead_letter", uid="m")
    assert stream.side_output("dead_letter").schema is not None
    with pytest.raises(PlanError, match=r"map 'm'.*no side output 'late'.*\['dead_letter'\]"):
        stream.side_output("late")
    with pytest.raises(PlanError, match="union, key_by, rebalance and broadcast"):
        stream.rebalance().side_output("dead_letter")


# -------------------------------------------------------------------------------------- union


def test_a_union_joins_streams_of_one_schema(env: StreamExecutionEnvironment, flights: DataStream):
    more = env.from_source(FakeSource(), uid="more")
    most = env.from_source(FakeSource(), uid="most")
    both = flights.union(more, most)
    assert both.schema == FLIGHTS
    both.map(lambda row: row, uid="m").sink_to(FakeSink(), uid="out")
    assert [(e.upstream, e.downstream, e.input_index) for e in plan(env).edges] == [
        ("flights", "m", 0),
        ("more", "m", 0),
        ("most", "m", 0),
    ]


def test_key_by_after_a_union_hashes_every_part(
    env: StreamExecutionEnvironment, flights: DataStream
):
    more = env.from_source(FakeSource(), uid="more")
    flights.union(more).key_by("carrier").aggregate(n=count(), uid="n").sink_to(
        FakeSink(), uid="out"
    )
    assert {(e.partitioning, e.keys) for e in plan(env).edges} == {
        (Partitioning.HASH, ("carrier",))
    }


def test_a_union_of_different_schemas_is_refused_naming_the_columns(flights: DataStream):
    with pytest.raises(PlanError, match=rf"union at .*{HERE}.*column 'origin' is only in"):
        flights.union(flights.select("carrier", "delay"))


def test_streams_of_two_environments_do_not_mix(flights: DataStream):
    stranger = StreamExecutionEnvironment().from_source(FakeSource(), uid="flights")
    with pytest.raises(PlanError, match="different environments"):
        flights.union(stranger)


# ---------------------------------------------------------------------------- options, setters


def test_options_and_setters_say_the_same(env: StreamExecutionEnvironment, flights: DataStream):
    flights.map(
        lambda row: row, uid="a", name="first", parallelism=2, num_cpus=1, memory=10,
        resources={"tpu": 1},
    ).sink_to(FakeSink(), uid="one", parallelism=2)  # fmt: skip
    (
        flights.map(lambda row: row)
        .uid("b")
        .name("first")
        .set_parallelism(2)
        .set_resources(num_cpus=1, memory=10, resources={"tpu": 1})
        .sink_to(FakeSink())
        .uid("two")
        .set_parallelism(2)
    )
    one, two = plan(env).chain("a"), plan(env).chain("b")
    assert (one.name, one.parallelism, one.resources) == (two.name, two.parallelism, two.resources)
    assert one.resources.resources == {"tpu": 1}
    assert {"one", "two"} <= set(plan(env).sink_uids())


def test_disable_chaining_gives_the_last_operator_its_own_actor(
    env: StreamExecutionEnvironment, flights: DataStream
):
    flights.map(lambda row: row, uid="m").disable_chaining().sink_to(FakeSink(), uid="out")
    assert [chain.uids for chain in plan(env).chains] == [("flights",), ("m",), ("out",)]


def test_a_uid_used_twice_is_refused_at_once_by_option_and_by_setter(flights: DataStream):
    flights.map(lambda row: row, uid="m")
    both = rf"'m'.*filter at .*{HERE}.*map at .*{HERE}"
    with pytest.raises(DuplicateUidError, match=both):
        flights.filter(bool, uid="m")
    with pytest.raises(DuplicateUidError, match=both):
        flights.filter(bool).uid("m")


def test_setters_need_an_operator_to_set(flights: DataStream):
    for stream in (flights.union(flights), flights.key_by("carrier"), flights.broadcast()):
        with pytest.raises(PlanError, match=r"\.uid\(\.\.\.\) sets something on the operator"):
            stream.uid("x")


@pytest.mark.parametrize("parallelism", [0, -1, 1.5, True, "2"])
def test_a_parallelism_that_is_no_count_is_refused(flights: DataStream, parallelism: Any):
    with pytest.raises(ConfigError, match="parallelism must be a whole number from 1"):
        flights.map(lambda row: row, parallelism=parallelism)
    with pytest.raises(ConfigError, match="parallelism must be a whole number from 1"):
        flights.set_parallelism(parallelism)


@pytest.mark.parametrize(
    "asked", [{"num_cpus": -1}, {"num_gpus": "1"}, {"memory": -5}, {"resources": {"tpu": -1}}]
)
def test_resources_that_are_no_amounts_are_refused(flights: DataStream, asked: dict[str, Any]):
    with pytest.raises(ConfigError, match="must be a number from 0"):
        flights.map(lambda row: row, **asked)


def test_a_misspelt_option_is_told_the_nearest(flights: DataStream):
    with pytest.raises(TypeError, match=r"map\(\) has no argument 'paralelism'.*'parallelism'"):
        flights.map(lambda row: row, paralelism=2)  # type: ignore[call-arg]


def test_a_computed_column_named_like_an_option_goes_into_a_mapping(flights: DataStream):
    with pytest.raises(ConfigError, match=r"with_columns\(\{'name': \.\.\.\}\)"):
        flights.with_columns(name=pc.field("delay"))  # type: ignore[arg-type]
    assert flights.with_columns({"name": pc.field("delay")}).schema.names[-1] == "name"
    assert flights.select({"name": pc.field("delay")}).schema.names == ["name"]
    by = flights.key_by("carrier").aggregate({"name": count()})
    assert by.schema.names == ["carrier", "name"]


# ------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda s: s.map("f"), "map at .*expected a function, got 'f'"),
        (lambda s: s.flat_map(None), "flat_map at .*expected a function"),
        (lambda s: s.filter(True), "filter at .*expected a function"),
        (lambda s: s.filter(pc.field("carrier")), "filter at .*carrier"),
        (lambda s: s.map_batches(3), "map_batches at .*expected a function"),
        (lambda s: s.key_by(), "key_by at .*one or more column names"),
        (lambda s: s.key_by(len), "key_by at .*with_columns"),
        (lambda s: s.key_by("carrier").reduce(None), "reduce at .*expected a function"),
        (lambda s: s.select(), "select at .*at least one column"),
        (lambda s: s.select(3), "select at .*expected a column name"),
        (lambda s: s.with_columns(), "with_columns at .*at least one column"),
        (lambda s: s.with_columns(x=lambda row: row), "with_columns at .*'x' must be"),
        (lambda s: s.sink_to("s3://out"), "sink_to at .*expected a Sink"),
        (lambda s: s.sink_to(FakeSink), "sink_to at .*an instance"),
    ],
)
def test_misuse_is_refused_on_its_line(flights: DataStream, misuse: Any, message: str):
    with pytest.raises(PlanError, match=message.replace(" at .*", rf" at .*{HERE}.*")):
        misuse(flights)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda k: k.aggregate(), "at least one aggregation"),
        (lambda k: k.aggregate(n=3), "'n' must be an aggregation"),
        (lambda k: k.aggregate(carrier=count()), "both a key and a result"),
        (lambda k: k.aggregate(n=count(), emit="sometimes"), "'sometimes'"),
    ],
)
def test_an_aggregate_that_makes_no_sense_is_refused(
    flights: DataStream, misuse: Any, message: str
):
    with pytest.raises(ConfigError, match=message):
        misuse(flights.key_by("carrier"))


# -------------------------------------------------------------------------------------- sinks


def test_a_sink_ends_its_chain_and_shows_itself(
    env: StreamExecutionEnvironment, flights: DataStream
):
    end = flights.sink_to(FakeSink(), uid="out", name="to disk")
    assert repr(end).startswith("DataStreamSink(sink 'out' at ")
    spec = only_chain(env).sink
    assert spec is not None
    assert (spec.uid, spec.name) == ("out", "to disk")
    assert isinstance(spec.factory(), Sink)


def test_print_writes_rows_after_its_prefix(
    env: StreamExecutionEnvironment, flights: DataStream, capsys: pytest.CaptureFixture[str]
):
    flights.select("carrier").print("> ")
    spec = only_chain(env).sink
    assert spec is not None
    spec.factory().write(pa.record_batch({"carrier": ["AA"]}))
    assert capsys.readouterr().out == "> {'carrier': 'AA'}\n"


def twice(row: dict[str, Any]) -> dict[str, Any]:
    return {"twice": row["delay"] * 2.0}


def test_a_plan_travels_to_another_process(env: StreamExecutionEnvironment, flights: DataStream):
    end = flights.filter(pc.field("delay") < 15).map(twice, uid="m")
    end.key_by("twice").aggregate(n=count(), uid="n").sink_to(FakeSink(), uid="out")
    there = pickle.loads(pickle.dumps(plan(env)))
    before = there.chain("flights")
    assert before.uids == ("flights", "filter-1", "m", "n.local")
    assert run(before, AA, UA) == [{"twice": 6.0, "n.count": 1}]
