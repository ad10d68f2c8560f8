"""From what the user described to what runs: the logical graph, the compiler, the plan.

Why it exists: ``graph`` is written by the fluent face, ``compile`` turns it into ``physical``,
``explain`` shows it; all of it is plain data, and none of it knows Ray.

May import: the rooms of the middle floor (operators, connectors, state) and below.
"""
