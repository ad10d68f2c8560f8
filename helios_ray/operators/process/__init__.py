"""Process functions: a user's code per row with state and timers of the row's key.

Why it exists: what no built-in operator does is written here. A function object is called
with rows and with timers, in one thread, and what it holds is in the snapshot.

    function    the classes that users derive from
    context     what a call is given: outputs, timers, the current key
    outputs     main and side outputs, in the types that they were declared with
    driver      calls, failures, timers, snapshot: shared by the operators below
    keyed       KeyedProcessFunction: row at a time, or a sorted table at a time
    connected   CoProcessFunction and BroadcastProcessFunction, on two inputs

May import: elements, errors, operators, state, Arrow, numpy.
"""
