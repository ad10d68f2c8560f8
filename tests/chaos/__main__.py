"""``python -m tests.chaos --kills 20 [--seed N]``: see the package's docstring.

Prints a line per kill, and last of all the figure. Ends with 1 if anything was lost or is there
twice, if anything else is wrong, or if the job got stuck; then it says how to have the same run
again and where the logs are.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import statistics
import sys
import time
from datetime import timedelta

from tests.chaos import judges, timeline
from tests.chaos.killer import Killer, Recovery
from tests.chaos.schedule import Kill, draw
from tests.chaos.world import OUTPUT, World

ROWS_PER_SECOND = 1000.0
END = timedelta(seconds=120)
"""For the job to end after it has been told how many rows there are."""


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many SIGKILLs (default: 20)")
    parser.add_argument("--seed", type=int, default=None, help="the run to have again")
    parser.add_argument("--keep", action="store_true", help="keep logs and files of a good run")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills must be at least 1, got {options.kills}")
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    # What the driver logs would only break the lines of progress.
    logging.getLogger("helios_ray").setLevel(logging.ERROR)
    with World(seed, ROWS_PER_SECOND) as world:
        # Whoever ends the run ends its servers too; Ray has put a handler of its own there.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: terminated"))
        _say(
            f"chaos: seed {seed}, {options.kills} kills; a checkpoint every "
            f"{world.interval.total_seconds() * 1000:.0f} ms on {world.stored} storage, "
            f"{world.format} files"
        )
        recoveries: list[Recovery] = []
        verdict = judges.Verdict()
        try:
            _kill(world, draw(options.kills, seed), recoveries)
            inputs = _finish(world)
            _judge(world, verdict, inputs)
        except Exception as error:  # whatever it is, say what the job says, and how to repeat it
            verdict.complaints.append(f"{type(error).__name__}: {error}")
            verdict.complaints.append(f"the job's report: {_report(world)}")
        changes = timeline.read(world.logs())
        world.keep = options.keep or not verdict.clean
    _say(timeline.summary(recoveries, changes))
    for complaint in verdict.complaints:
        _say(f"chaos: {complaint}")
    if not verdict.clean:
        _say(f"chaos: to have it again: make chaos KILLS={options.kills} SEED={seed}")
    if world.keep:
        _say(f"chaos: logs and files: {world.directory}")
    seconds = [recovery.seconds for recovery in recoveries]
    _say(
        f"chaos: kills={len(recoveries)} lost={verdict.lost} duplicated={verdict.duplicated} "
        f"recovery_p50_s={statistics.median(seconds or [0.0]):.2f} "
        f"recovery_max_s={max(seconds, default=0.0):.2f}"
    )
    return 0 if verdict.clean else 1


def _kill(world: World, kills: list[Kill], recoveries: list[Recovery]) -> None:
    killer = Killer(world)
    killer.await_first_output()
    while kills:
        turn = [kills.pop(0)]
        while turn[-1].opens:
            turn.append(kills.pop(0))
        healed = killer.strike(turn)
        rows = world.output_rows()
        for recovery in healed:
            recoveries.append(recovery)
            wound = recovery.wound
            _say(
                f"kill {len(recoveries):>3}  {wound.kill!s:<32} epoch {wound.epoch:>3} -> "
                f"{recovery.epoch:>3}  new output after {recovery.seconds:5.2f} s  "
                f"rows {rows:>8}"
            )


def _finish(world: World) -> int:
    """Say how many rows there shall have been, wait for the end; return that number."""
    inputs = world.end_input()
    began = time.monotonic()
    result = world.job.wait(END)
    _say(
        f"chaos: {result.status.value} after {inputs} inputs, "
        f"{time.monotonic() - began:.1f} s after the last kill's recovery"
    )
    return inputs


def _judge(world: World, verdict: judges.Verdict, inputs: int) -> None:
    judges.judge_postgres(verdict, world.postgres.dsn, inputs)
    judges.judge_files(verdict, world.s3.client(), world.bucket, f"{OUTPUT}/", inputs)
    judges.judge_checkpoints(verdict, world.storage, world.keys)


def _report(world: World) -> str:
    try:
        return repr(world.report())
    except Exception as error:
        return f"none ({type(error).__name__}: {error})"


def _say(line: str) -> None:
    # Not sys.stdout: what Ray has to say about dead processes goes to a log (see World).
    print(line, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.exit(main())
