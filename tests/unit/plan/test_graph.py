"""The graph knows who is called what, and where in the user's code each was made."""

from __future__ import annotations

import functools
from pathlib import Path

import pyarrow.compute as pc
import pytest

from helios_ray.errors import ConfigError, DuplicateUidError, PlanError
from helios_ray.plan.graph import CallSite, Graph, Link, describe_function
from tests.unit.plan.fakes import Sketch


def test_a_uid_used_twice_is_refused_at_once_naming_both_lines():
    s = Sketch()
    source = s.source("in")
    s.op(source, uid="twice")
    with pytest.raises(DuplicateUidError, match=r"'twice'.*map at job\.py:3.*map at job\.py:2"):
        s.op(source, uid="twice")
    assert len(s.graph) == 2


def test_a_line_run_again_is_told_about_notebooks():
    s = Sketch()
    s.source("in", call_site=CallSite("cell", 1))
    with pytest.raises(DuplicateUidError, match="new StreamExecutionEnvironment"):
        s.source("in", call_site=CallSite("cell", 1))


def test_changing_a_uid_frees_the_old_one_and_keeps_the_node():
    s = Sketch()
    first = s.source("old")
    assert s.graph.change(first.id, uid="new").uid == "new"
    second = s.source("old")
    assert (s.graph[first.id].uid, second.uid) == ("new", "old")
    with pytest.raises(DuplicateUidError):
        s.graph.change(second.id, uid="new")
    assert s.graph[second.id].uid == "old"


def test_setting_the_same_uid_again_is_fine():
    s = Sketch()
    node = s.source("in")
    assert s.graph.change(node.id, uid="in") == node


@pytest.mark.parametrize("uid", ["", "a/b", "../up", "-dash", "a b", "x" * 129])
def test_a_uid_that_cannot_be_part_of_a_path_is_refused(uid: str):
    with pytest.raises(ConfigError, match="uid"):
        Sketch().source(uid)


def test_a_stream_of_another_environment_is_refused():
    with pytest.raises(PlanError, match="one StreamExecutionEnvironment"):
        Sketch().sink(Link(upstream=7))


def test_a_side_output_that_the_operator_lacks_is_refused_naming_those_it_has():
    s = Sketch()
    split = s.op(s.source(), uid="split", side_outputs={"late": None})
    with pytest.raises(PlanError, match=r"'lost'.*map 'split' at job\.py:2.*\['late'\]"):
        s.sink(Link(upstream=split.id, tag="lost"))


def test_a_call_site_is_the_users_line_and_not_the_packages():
    s = Sketch()
    node = Graph().add(kind="map", role=s.source().role)
    assert node.call_site.file == __file__
    assert "Graph().add(kind=" in Path(__file__).read_text().splitlines()[node.call_site.line - 1]


class Model:
    def __call__(self, batch: object) -> object:
        return batch


def outer(row: object) -> object:
    return row


def test_functions_are_described_as_their_authors_would_find_them():
    def inner(row: object) -> object:
        return row

    assert describe_function(outer) == "outer"
    assert describe_function(inner) == "inner"
    assert describe_function(functools.partial(outer, 1)) == "outer"
    assert describe_function(Model) == "Model"
    assert describe_function(Model()) == "Model"
    assert describe_function(Model().__call__) == "Model.__call__"
    assert describe_function(pc.field("delay") > 3) == "(delay > 3)"
    line = outer.__code__.co_firstlineno
    anonymous = eval(compile("\n" * line + "lambda row: row", "/home/me/flights.py", "eval"))
    assert describe_function(anonymous) == f"lambda at flights.py:{line + 1}"
