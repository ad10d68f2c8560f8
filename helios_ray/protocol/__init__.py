"""The protocol of exactly-once, as pure state machines.

Why it exists: everything that makes "exactly once" true is decided here, without Ray,
threads, clocks or I/O: events in, instructions out. ``DESIGN`` calls them rules 1 to 18;
each module's docstring says which ones it carries. The Ray actors (``runtime``) and the
simulator (``simulation``) drive the same classes.

    channels     sequence numbers, duplicates, gaps, credit
    alignment    when a barrier has arrived everywhere
    watermarks   event time over many inputs
    drift        sources that wait for each other
    commits      which transactions wait for which checkpoint
    checkpoints  when to trigger; what is pending
    recovery     which checkpoint to resume from; which transactions to settle
    restart      whether and when to try again
    messages     what coordinator and tasks say to each other
    task         one task
    settings     the job's shape and rules
    deployment   which process runs each task, and when it was last heard
    storage_requests  what storage was asked and has not answered
    takeover     an epoch, a checkpoint to resume from, old transactions settled
    attempt      checkpoints and commits while an epoch runs
    coordinator  one attempt after another to run a job

May import: elements, errors, identifiers, records.
"""
