"""The compiler fuses what may be fused, ships rows where they must go, and names everything."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import ConfigError, CycleError, PlanError
from helios_ray.plan.compile import CompiledPlan, PlanSettings, compile_graph
from helios_ray.plan.graph import Collects, Graph, Link
from helios_ray.plan.physical import Partitioning, PhysicalPlan, Resources
from tests.unit.plan.fakes import FakeSink, Keeps, LeakySink, LocalHalf, MergingHalf, Sketch, by_key


def compiled(sketch: Sketch, **settings: object) -> CompiledPlan:
    return compile_graph(sketch.graph, "job", PlanSettings(**settings))  # type: ignore[arg-type]


def plan(sketch: Sketch, **settings: object) -> PhysicalPlan:
    return compiled(sketch, **settings).plan


def chains(sketch: Sketch, **settings: object) -> list[tuple[str, ...]]:
    return [chain.uids for chain in plan(sketch, **settings).chains]


def edges(sketch: Sketch, **settings: object) -> list[tuple[str, str, Partitioning]]:
    return [(e.operator, e.downstream, e.partitioning) for e in plan(sketch, **settings).edges]


# ----------------------------------------------------------------------------------- chaining


def test_forward_connected_operators_of_equal_parallelism_share_one_actor():
    s = Sketch()
    s.sink(s.op(s.op(s.source(), uid="a"), uid="b"))
    assert chains(s) == [("in", "a", "b", "out")]
    assert plan(s).edges == ()


def test_a_change_of_parallelism_breaks_the_chain_and_rebalances():
    s = Sketch()
    s.sink(s.op(s.source(parallelism=1), uid="wide", parallelism=4), parallelism=4)
    assert chains(s) == [("in",), ("wide", "out")]
    assert edges(s) == [("in", "wide", Partitioning.REBALANCE)]


def test_operators_that_do_not_say_take_the_environments_parallelism():
    s = Sketch()
    s.sink(s.op(s.source(), uid="a", parallelism=2))
    assert plan(s, parallelism=3).parallelism == {"in": 3, "a": 2, "out": 3}


def test_a_hash_edge_breaks_the_chain_even_between_single_subtasks():
    s = Sketch()
    s.sink(s.op(by_key(s.source(), "carrier", "origin"), uid="sum"))
    assert chains(s) == [("in",), ("sum", "out")]
    [edge] = plan(s).edges
    assert (edge.partitioning, edge.keys) == (Partitioning.HASH, ("carrier", "origin"))


def test_explicit_rebalance_and_broadcast_are_kept_between_equal_parallelisms():
    for how in (Partitioning.REBALANCE, Partitioning.BROADCAST):
        s = Sketch()
        s.sink(s.op(Link(upstream=s.source().id, partitioning=how), uid="a"))
        assert edges(s, parallelism=2) == [("in", "a", how)]


def test_two_readers_of_one_output_get_an_edge_each_and_neither_is_fused():
    s = Sketch()
    source = s.source()
    s.sink(source, uid="one")
    s.sink(source, uid="two")
    assert chains(s) == [("in",), ("one",), ("two",)]
    assert edges(s) == [
        ("in", "one", Partitioning.FORWARD),
        ("in", "two", Partitioning.FORWARD),
    ]


def test_a_reader_that_nobody_collects_from_does_not_stand_in_the_way_of_fusing():
    s = Sketch()
    source = s.source()
    s.op(source, uid="forgotten")
    s.sink(source)
    assert chains(s) == [("in", "out")]


def test_a_union_is_several_edges_into_one_input():
    s = Sketch()
    s.sink(s.op(s.source("left"), s.source("right"), uid="both"))
    assert chains(s) == [("left",), ("right",), ("both", "out")]
    both = plan(s).edges
    assert [(e.operator, e.downstream, e.input_index) for e in both] == [
        ("left", "both", 0),
        ("right", "both", 0),
    ]


def test_a_stream_united_with_itself_sends_its_rows_twice():
    s = Sketch()
    source = s.source()
    s.sink(source, source)
    assert [e.upstream for e in plan(s).edges] == ["in", "in"]


def test_a_side_output_leaves_from_inside_a_chain_while_the_main_output_stays_in_it():
    s = Sketch()
    split = s.op(s.source(), uid="split", side_outputs={"late": None})
    s.sink(s.op(split, uid="after"), uid="out")
    s.sink(Link(upstream=split.id, tag="late"), uid="late")
    assert chains(s) == [("in", "split", "after", "out"), ("late",)]
    [edge] = plan(s).edges
    assert (edge.upstream, edge.operator, edge.tag, edge.downstream) == (
        "in",
        "split",
        "late",
        "late",
    )


@pytest.mark.parametrize("where", ["source", "op", "sink"])
def test_disable_chaining_separates_an_operator_from_both_neighbours(where: str):
    s = Sketch()
    off = {"chainable": False}
    source = s.source(**(off if where == "source" else {}))
    op = s.op(source, uid="op", **(off if where == "op" else {}))
    s.sink(op, **(off if where == "sink" else {}))
    expected = {
        "source": [("in",), ("op", "out")],
        "op": [("in",), ("op",), ("out",)],
        "sink": [("in", "op"), ("out",)],
    }
    assert chains(s) == expected[where]


def test_chaining_can_be_turned_off_for_the_whole_job():
    s = Sketch()
    s.sink(s.op(s.source(), uid="a"))
    assert chains(s, chaining=False) == [("in",), ("a",), ("out",)]


def test_different_resources_break_the_chain_and_equal_ones_do_not():
    gpu = Resources(num_gpus=1)
    s = Sketch()
    s.sink(s.op(s.op(s.source(), uid="a", resources=gpu), uid="b", resources=gpu))
    assert chains(s) == [("in",), ("a", "b"), ("out",)]
    assert plan(s).chain("a").resources == gpu
    assert plan(s).chain("in").resources == Resources()


# -------------------------------------------------------------------------- local aggregation


def keyed_sum(s: Sketch, **fields: object) -> None:
    s.sink(s.op(by_key(s.source(), "carrier"), uid="sum", stages=True, **fields))


def test_the_local_half_of_an_aggregate_runs_at_the_tail_of_the_chain_before_the_shuffle():
    s = Sketch()
    keyed_sum(s)
    assert chains(s) == [("in", "sum.local"), ("sum", "out")]
    assert edges(s) == [("sum.local", "sum", Partitioning.HASH)]
    local = plan(s).chain("in").operators[-1]
    assert isinstance(local.factory(), LocalHalf)
    assert isinstance(plan(s).chain("sum").operators[0].factory(), MergingHalf)


@pytest.mark.parametrize(
    "settings", [{"local_aggregation": False}, {"chaining": False}], ids=["no-local", "no-chaining"]
)
def test_the_local_half_can_be_turned_off(settings: dict[str, bool]):
    s = Sketch()
    keyed_sum(s)
    assert edges(s, **settings)[0] == ("in", "sum", Partitioning.HASH)
    assert isinstance(plan(s, **settings).chain("sum").operators[0].factory(), Keeps)


def test_no_local_half_is_fused_to_an_aggregate_that_wants_actors_of_its_own():
    s = Sketch()
    keyed_sum(s, chainable=False)
    assert edges(s)[0] == ("in", "sum", Partitioning.HASH)


def test_no_local_half_where_someone_else_reads_the_same_rows():
    s = Sketch()
    source = s.source()
    s.sink(source, uid="raw")
    s.sink(s.op(by_key(source, "carrier"), uid="sum", stages=True), uid="sums")
    assert ("in", "sum", Partitioning.HASH) in edges(s)
    assert all("local" not in uid for chain in chains(s) for uid in chain)


def test_no_local_half_before_a_union_or_for_rows_of_a_side_output():
    s = Sketch()
    one, two = s.source("one"), s.source("two")
    s.sink(s.op(by_key(one, "carrier"), by_key(two, "carrier"), uid="sum", stages=True))
    assert [e[0] for e in edges(s)] == ["one", "two"]

    s = Sketch()
    split = s.op(s.source(), uid="split", side_outputs={"late": None})
    late = dataclasses.replace(by_key(split, "carrier"), tag="late")
    s.sink(s.op(late, uid="sum", stages=True))
    assert [e[0] for e in edges(s)] == ["split"]


# --------------------------------------------------------------------------------------- uids


def test_missing_uids_are_generated_from_kind_and_position_the_same_way_every_time():
    def draw() -> Sketch:
        s = Sketch()
        s.sink(s.op(s.op(s.source(None)), kind="aggregate", stateful=True), uid=None)
        return s

    assert chains(draw()) == [("source-1", "map-1", "aggregate-1", "sink-1")]
    assert chains(draw()) == chains(draw())


def test_giving_one_operator_a_uid_moves_no_generated_one():
    s = Sketch()
    s.sink(s.op(s.op(s.source(), uid="mine")))
    assert chains(s) == [("in", "mine", "map-2", "out")]


def test_a_generated_uid_steps_aside_for_a_given_one():
    s = Sketch()
    s.sink(s.op(s.op(s.source()), uid="map-1"))
    assert chains(s) == [("in", "map-1-auto", "map-1", "out")]


def test_each_missing_uid_of_something_with_state_is_hinted_at_with_the_name_to_add():
    s = Sketch()
    s.sink(s.op(s.source(None), kind="aggregate", stateful=True), uid=None)
    hints = compiled(s).hints
    assert [h.call_site.line for h in hints] == [1, 2, 3]
    for hint, uid in zip(hints, ["source-1", "aggregate-1", "sink-1"], strict=True):
        assert f"uid={uid!r}" in hint.message


def test_a_missing_uid_of_something_without_state_is_nobodys_business():
    s = Sketch()
    s.sink(s.op(s.source()))
    assert compiled(s).hints == ()


# ------------------------------------------------------------------------------- what is wrong


def test_a_job_without_a_sink_is_refused_with_the_way_out():
    s = Sketch()
    s.op(s.source())
    with pytest.raises(PlanError, match=r"2 operators and no sink.*\.sink_to"):
        plan(s)
    with pytest.raises(PlanError, match="describes nothing"):
        compile_graph(Graph(), "job")


def test_a_stream_without_a_sink_beside_others_is_left_out_and_hinted_at():
    s = Sketch()
    source = s.source()
    s.op(source, uid="forgotten")
    s.sink(source)
    [hint] = compiled(s).hints
    assert "map 'forgotten' at job.py:2 leads to no sink" in hint.message


def test_a_cycle_is_refused_naming_every_operator_in_it():
    s = Sketch()
    first = s.op(s.source(), uid="first")
    second = s.op(first, uid="second")
    s.sink(second)
    s.graph.change(first.id, inputs=(*first.inputs, Link(upstream=second.id)))
    with pytest.raises(CycleError, match=r"map 'first' at job.py:2.*map 'second' at job.py:3"):
        plan(s)


def test_parallelism_beyond_the_number_of_key_groups_is_refused_naming_the_line():
    s = Sketch()
    s.sink(s.op(s.source(), uid="wide", parallelism=9))
    with pytest.raises(ConfigError, match=r"map 'wide' at job.py:2 has parallelism 9.*is 8"):
        plan(s, max_parallelism=8)
    assert plan(s, max_parallelism=9).max_parallelism == 9


def test_a_job_name_that_cannot_be_a_path_is_refused():
    s = Sketch()
    s.sink(s.source())
    with pytest.raises(ConfigError, match="job name"):
        compile_graph(s.graph, "../up")


def test_a_sink_that_is_neither_transactional_nor_idempotent_is_announced():
    s = Sketch()
    source = s.source()
    s.sink(source, uid="exact")
    s.sink(source, uid="leaky", prototype=LeakySink())
    [warning] = plan(s).warnings
    assert "'leaky'" in warning
    assert "at-least-once" in warning


# -------------------------------------------------------------------------------------- sinks


def test_each_subtask_and_epoch_gets_a_sink_of_its_own():
    prototype = FakeSink()
    s = Sketch()
    s.sink(s.source(), prototype=prototype)
    spec = plan(s).chain("in").sink
    assert spec is not None
    one, two = spec.factory(), spec.factory()
    one.rows.append("row")  # type: ignore[attr-defined]
    assert two.rows == []  # type: ignore[attr-defined]
    assert prototype.rows == []


def test_a_collecting_sink_is_made_by_whoever_has_the_storage():
    s = Sketch()
    s.graph.add(kind="collect", role=Collects(), inputs=(Link(upstream=s.source().id),), uid="rows")
    asked: list[str] = []

    def collect(uid: str) -> type[FakeSink]:
        asked.append(uid)
        return FakeSink

    spec = compile_graph(s.graph, "job", collect=collect).plan.chain("in").sink
    assert asked == ["rows"]
    assert spec is not None
    assert isinstance(spec.factory(), FakeSink)

    unbound = compile_graph(s.graph, "job").plan.chain("in").sink
    assert unbound is not None
    with pytest.raises(PlanError, match=r"env\.execute"):
        unbound.factory()


# --------------------------------------------------------------------------------- properties


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Any graph that the face can build: nodes read earlier nodes, in any partitioning."""
    s = Sketch()
    nodes = [s.source("in", parallelism=draw(st.integers(1, 3)))]
    hows = st.sampled_from([None, None, None, *Partitioning])
    for i in range(draw(st.integers(1, 8))):
        links = []
        for upstream in draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3)):
            how = draw(hows)
            if how is Partitioning.FORWARD:
                how = None
            tag = draw(st.sampled_from([None, None, *upstream.side_outputs]))
            keys = ("carrier",) if how is Partitioning.HASH else ()
            links.append(Link(upstream=upstream.id, tag=tag, partitioning=how, keys=keys))
        nodes.append(
            s.op(
                *links,
                uid=draw(st.sampled_from([None, f"op{i}"])),
                parallelism=draw(st.sampled_from([None, 1, 2])),
                chainable=draw(st.booleans()),
                stages=draw(st.booleans()),
                side_outputs=draw(st.sampled_from([{}, {"side": None}])),
            )
        )
    for i, node in enumerate(draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))):
        s.sink(node, uid=f"out{i}")
    return s


@given(sketches())
def test_every_operator_that_leads_to_a_sink_runs_once_and_every_link_is_kept(s: Sketch):
    done = compiled(s)
    uids = [uid for chain in done.plan.chains for uid in chain.uids]
    assert len(uids) == len(set(uids))
    locals_ = set(uids) - set(done.nodes)
    assert set(done.nodes) <= set(uids)

    inside = sum(len(c.uids) - 1 for c in done.plan.chains) - len(locals_)
    links = sum(len(node.inputs) for node in done.nodes.values())
    assert inside + len(done.plan.edges) == links


@given(sketches())
def test_chains_come_in_the_order_rows_take_and_forward_edges_fit(s: Sketch):
    done = plan(s)
    place = {chain.uid: i for i, chain in enumerate(done.chains)}
    assert [edge.index for edge in done.edges] == list(range(len(done.edges)))
    for edge in done.edges:
        assert place[edge.upstream] < place[edge.downstream]
        assert edge.operator in done.chain(edge.upstream).uids
        assert (edge.partitioning is Partitioning.HASH) == bool(edge.keys)
        if edge.partitioning is Partitioning.FORWARD:
            up, down = done.chain(edge.upstream), done.chain(edge.downstream)
            assert up.parallelism == down.parallelism


@given(sketches())
def test_a_plan_is_plain_data_and_the_same_every_time(s: Sketch):
    done = plan(s)
    again = pickle.loads(pickle.dumps(done))
    assert [c.uids for c in again.chains] == [c.uids for c in done.chains]
    assert again.edges == done.edges == plan(s).edges
