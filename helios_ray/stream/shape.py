"""Where rows go: key_by, union, branch, side outputs, rebalance, broadcast.

Why it exists: these add no operator (branch aside); they say how the next one is reached.

May import: plan, operators, state.hashing, watermarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from helios_ray.errors import PlanError
from helios_ray.operators.expressions import is_expression
from helios_ray.operators.projection import BranchOperator
from helios_ray.operators.user_functions import DEAD_LETTER
from helios_ray.plan.graph import Link, describe_function
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.physical import Partitioning
from helios_ray.plan.schema import check_predicate, nearest, union_schema
from helios_ray.state.hashing import check_keys
from helios_ray.stream.base import AnyExpression, BaseStream, OnError, Row, check_callable, where
from helios_ray.stream.branches import REST, Branches

if TYPE_CHECKING:
    from helios_ray.stream.data_stream import DataStream
    from helios_ray.stream.keyed_stream import KeyedStream


def _is_list(columns: tuple[object, ...]) -> bool:
    return len(columns) == 1 and isinstance(columns[0], list | tuple)


class Shape(BaseStream):
    """The methods of a stream that route rows."""

    def key_by(self, *columns: str) -> KeyedStream:
        """Bring rows of equal keys together, for ``aggregate`` and ``reduce``.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.
            PlanError: no column is given, or a function.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> StreamExecutionEnvironment().from_range(10, uid="numbers").key_by("item")
            KeyedStream[item: int64]
        """
        from helios_ray.stream.keyed_stream import KeyedStream

        here = where("key_by")
        if not columns or not all(isinstance(c, str) for c in columns):
            raise PlanError(
                f"{here}: a key is one or more column names, got {columns!r}. To key by "
                f"something computed, add it with with_columns(...) or map(...) first."
                f"{' Give the names themselves, without a list.' if _is_list(columns) else ''}"
            )
        if self._schema is not None:
            check_keys(self._schema, columns, here)
        links = self._partitioned(Partitioning.HASH, columns)
        return KeyedStream(self._graph, links, self._schema, keys=columns, time=self._time)

    def union(self, *others: DataStream) -> DataStream:
        """All rows of this stream and ``others``, in no particular order between them.

        Raises:
            PlanError: the schemas differ, or the streams belong to different environments.
        """
        here = where("union")
        for other in others:
            self._check_same_graph(other, "union")
        streams = (self, *others)
        schema = union_schema([s._schema for s in streams], here)
        links = [link for s in streams for link in s._links]
        # Where the parts go by different columns, whoever needs a time has to say which.
        agreed = all(s._time == self._time for s in streams)
        return self._of(links, schema, time=self._time if agreed else None)

    def branch(
        self,
        predicates: Mapping[str, Callable[[Row], bool] | AnyExpression] | None = None,
        /,
        *,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        on_error: OnError = "raise",
        **named: Callable[[Row], bool] | AnyExpression,
    ) -> Branches:
        """Split rows by predicates into named streams.

        A row goes to the first branch whose predicate is true, in the order given; rows
        that none wants go to ``.rest``. The rows of a branch that nobody reads are dropped.

        Args:
            predicates: by name; for names that are also options, such as ``name``.
            on_error: what becomes of a row whose predicate raises; under ``"dead_letter"``
                it goes to ``branches.rest.dead_letters()``.
            named: predicates by name: expressions, or functions of a row.

        Raises:
            MissingColumnError: an expression names a column that is not there.
            PlanError: no predicate, or a name that is taken.

        Example:
            >>> import pyarrow.compute as pc
            >>> from helios_ray import StreamExecutionEnvironment
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.branch(small=pc.field("item") < 3)
            Branches(small, rest)
        """
        options = OperatorOptions(uid=uid, name=name, parallelism=parallelism)
        node_fields(options, "branch")
        chosen = {**(predicates or {}), **named}
        here = where("branch")
        if not chosen:
            raise PlanError(f"{here}: give at least one, as in branch(late=pc.field('delay') > 0)")
        for branch, predicate in chosen.items():
            if branch in (REST, DEAD_LETTER) or branch.startswith("_"):
                raise PlanError(
                    f"{here}: {branch!r} cannot name a branch: {REST!r} holds the rows that no "
                    f"predicate wanted, {DEAD_LETTER!r} those whose predicate raised, and names "
                    f"starting with '_' are Python's. Rename it."
                )
            if is_expression(predicate):
                check_predicate(predicate, self._schema, f"{here}, branch {branch!r}")
            else:
                check_callable("branch", predicate)
        stream = self._operator(
            "branch",
            partial(BranchOperator, chosen, on_error=on_error),
            options,
            schema=self._schema,
            detail=", ".join(f"{n}: {describe_function(p)}" for n, p in chosen.items()),
            on_error=on_error,
            side_outputs=dict.fromkeys(chosen, self._schema),
        )
        return Branches({**{n: stream.side_output(n) for n in chosen}, REST: stream})

    def side_output(self, tag: str) -> DataStream:
        """The rows that the last operator sent to a side output.

        Raises:
            PlanError: the last operator has no such output.
        """
        here = where("side_output")
        if self._node is None:
            raise PlanError(
                f"{here}: union, key_by, rebalance and broadcast have no side outputs. Take it "
                f"from the operator before them."
            )
        outputs = self._graph[self._node].side_outputs
        if tag not in outputs:
            guess = nearest(tag, outputs)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise PlanError(
                f"{here}: {self._graph[self._node]} has no side output {tag!r}; it has "
                f"{sorted(outputs) or 'none'}.{hint}"
            )
        link = Link(upstream=self._node, tag=tag)
        # The side output's rows are no results: their event time is that of the input.
        came = self._graph[self._node].input_time if tag == "late" else self._time
        return self._of((link,), outputs[tag], time=came)

    def late(self) -> DataStream:
        """The rows that came too late for the last operator: ``side_output("late")``.

        Raises:
            PlanError: the last operator knows no late rows.
        """
        return self.side_output("late")

    def dead_letters(self) -> DataStream:
        """The rows whose function raised, with the error, where ``on_error="dead_letter"``.

        Raises:
            PlanError: the last operator does not keep dead letters.
        """
        if self._node is None or self._graph[self._node].on_error != "dead_letter":
            raise PlanError(
                f"{where('dead_letters')}: only an operator with on_error='dead_letter' has "
                f"them. Say so where it is made, as in .map(fn, on_error='dead_letter')."
            )
        return self.side_output(DEAD_LETTER)

    def rebalance(self) -> DataStream:
        """Deal batches out in turn to the subtasks of whatever reads this stream."""
        return self._stream(self._partitioned(Partitioning.REBALANCE), self._schema)

    def broadcast(self) -> DataStream:
        """Send every row to every subtask of whatever reads this stream."""
        return self._stream(self._partitioned(Partitioning.BROADCAST), self._schema)
