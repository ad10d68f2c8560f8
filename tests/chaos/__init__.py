"""Kill real processes of a real job until nobody doubts it: ``make chaos KILLS=20 SEED=7``.

Why it exists: the simulator proves the protocol, this proves the rest: Ray, sockets, process
death, PostgreSQL, S3. One job runs throughout; its processes are killed with SIGKILL, at random
moments and at every named step of the protocol (``helios_ray.runtime.failpoints``), one kill
after another, each as soon as the job has recovered from the one before. The judges look at
PostgreSQL and at S3 themselves and ask the runtime nothing.

    schedule    who is killed, when: drawn from the seed
    job         the job: numbers ─> running count by key ─> PostgreSQL and files on S3
    world       Ray, the servers, and what is seen from outside
    killer      one kill and the recovery from it
    judges      what was lost, what is there twice, what was left behind
    timeline    where the time of a recovery went, from the coordinator's log
"""
