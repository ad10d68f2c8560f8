"""A deterministic simulator: the same cores as under Ray, in one thread, under one seed.

Why it exists: see ``world``. What it promises is in ``judge``. Run it with
``python -m helios_ray.simulation --seeds 2000``; replay one run with ``--seed N``.

    faults        what may go wrong
    scenarios     jobs to simulate: a plan, rules and faults
    plans         plans to simulate, drawn from a seed; their shapes are in ``shapes``
    programs      any compiled job of a user (``helios_ray.testing.simulate``)
    world         time, mail, clusters, crashes
    nodes         the simulated processes
    requests      awaitables of operators, in virtual time
    storage       object storage with bad days
    ledger        the external system
    expectations  what must be in it in the end
    judge         the invariants
    run           one seed, from start to verdict
    mutants       planted bugs, each of which must be caught

May import: execution, plan, aggregates, checkpoint (retention), and the rooms below. Never ``ray``.
"""
