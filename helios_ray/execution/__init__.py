"""The body of a task: protocol core and operators bound together, still without I/O.

Why it exists: the Ray actor and the simulator run the same task, to the line. A task body
is single-threaded and deterministic; it takes messages, frames and the time, and returns
actions for whoever drives it.

    actions   what a body asks of its driver
    outputs   routing, coalescing and flow control of what leaves the task
    chain     the run of operators inside the task
    source    the source at its head: splits and positions
    source_time  event time of its splits, and of all of them
    drift     which of them wait, because the source is ahead of its group
    sink      the sink at its tail and its transactions
    restore   which state a task takes up from a checkpoint
    flow      rows, time, answers and ends through the chain, and what leaves
    assembly  a task's parts, made anew for every epoch
    batching  rows that wait, joined
    failures  which errors would come again
    settings  options and counters
    task      the body

May import: plan, and the middle rooms (protocol, operators, connectors, state) and below.
"""
