"""The Ray shells: the only room that runs a job on Ray.

Why it exists: the cores (``protocol``, ``execution``) decide, this room carries. An actor
method here does three things: take what came in, hand it to the core, carry out what the
core says.

    submit             from a plan to a running coordinator
    job                what a driver holds: JobHandle, JobResult
    coordinator_actor  the coordinator's process
    coordinator_io     its storage calls
    deployment         starting, replacing and addressing task actors
    task_actor         a task's process
    task_io            its uploads and downloads
    requests           what its operators wait for, on an event loop
    wire               frames as Arrow IPC bytes
    clock              time that only grows
    collect            results to the driver, exactly once
    reports            what is told about a job while it runs
    progress           a live line on a terminal or in a notebook
    metrics            Prometheus metrics through Ray

May import: everything below it, and ``ray``.
"""
