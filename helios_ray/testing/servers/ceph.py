"""A real S3 server for tests: Ceph's RADOS gateway over one monitor and one object store.

Why it exists: an emulator neither checks signatures nor survives a kill. This one does
both; what it acknowledged is on disk. Debian ships it, so nothing is downloaded from
elsewhere.

Promises: a start takes a few seconds; ``kill`` ends all three daemons by SIGKILL and
``restart`` brings them back with the data (with ``bluestore``).

Limits, measured on 16.2: a quoted ETag in ``If-Match`` is refused, and conditions on
DELETE and on CompleteMultipartUpload are ignored.

May import: s3, process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from helios_ray.testing.servers.process import (
    LOOPBACK,
    MissingServerError,
    ServerError,
    ServerProcess,
    free_port,
)
from helios_ray.testing.servers.s3 import S3Server

_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "monmaptool", "radosgw-admin", "ceph")
_COMMAND_TIMEOUT = 60.0

_CONFIG = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}/0
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_supported = none
mon_data = {root}/mon
osd_data = {root}/osd
admin_socket = {root}/run/$name.asok
run_dir = {root}/run
log_file = {root}/log/$name.log
log_to_stderr = false
crash_dir = {root}/log
osd_objectstore = {store}
memstore_device_bytes = 2147483648
bluestore_block_size = 4294967296
bluestore_block_create = true
bluestore_block_db_create = false
bluestore_block_wal_create = false
osd_memory_target = 939524096
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 500
mon_election_timeout = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_mon_heartbeat_interval = 5
rgw_max_objs_per_shard = 100000
rgw_override_bucket_index_max_shards = 1
rgw_gc_max_objs = 1
rgw_usage_max_shards = 1
rgw_reshard_num_logs = 1
rgw_lc_max_objs = 1
rgw_enable_lc_threads = false
rgw_dynamic_resharding = false
rgw_run_sync_thread = false
rgw_data_log_num_shards = 1
rgw_md_log_max_shards = 1
rgw_thread_pool_size = 64
[client.rgw]
rgw_data = {root}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port}
# Without this line the gateway insists on an encrypted link to the monitor, which needs
# the authentication that is switched off above, and hangs.
ms_mon_client_mode = crc
"""


class CephServer(S3Server):
    """A running Ceph gateway; ``stop`` it or use it in a ``with`` statement.

    Args:
        bluestore: True keeps objects on disk, so they survive ``kill``; False keeps them in
            memory, which starts some seconds faster.

    Raises:
        MissingServerError: the Ceph packages are not installed; says which.
        ServerError: it did not start; with the end of a log.
    """

    def __init__(self, *, bluestore: bool = True) -> None:
        _require_programs()
        access, secret = secrets.token_hex(10), secrets.token_hex(20)
        super().__init__(port=free_port(), access_key=access, secret_key=secret)
        self.directory = Path(tempfile.mkdtemp(prefix="hr-ceph-", dir="/tmp"))
        for name in ("mon", "osd", "run", "log", "rgw"):
            (self.directory / name).mkdir()
        self._mon_port = free_port()
        self._config = self.directory / "ceph.conf"
        self._environment = {
            "CEPH_CONF": str(self._config),
            "CEPH_ARGS": f"-c {self._config}",
        }
        self._mon = self._daemon("ceph-mon", "-i", "a", "-f")
        self._osd = self._daemon("ceph-osd", "-i", "0", "-f")
        self._gateway = self._daemon("radosgw", "-n", "client.rgw", "-f")
        try:
            self._create(bluestore)
            self.restart()
        except BaseException:
            self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of monitor, object store and gateway."""
        return [daemon.pid for daemon in (self._mon, self._osd, self._gateway)]

    def kill(self) -> None:
        """SIGKILL all three daemons, gateway first, and reap them."""
        for daemon in (self._gateway, self._osd, self._mon):
            daemon.kill()

    def restart(self, timeout: float = 120.0) -> None:
        """Start at the same address after ``kill``; returns when S3 answers.

        Args:
            timeout: seconds for each of the daemons.
        """
        self._mon.start()
        self._osd.start()
        self._osd.await_ready(self._osd_is_up, timeout)
        self._gateway.start()
        self._gateway.await_ready(self._answers, timeout)

    def stop(self) -> None:
        # In order of dependence, so that none waits for one that is gone.
        for daemon in (self._gateway, self._osd, self._mon):
            daemon.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _daemon(self, *command: str) -> ServerProcess:
        log = self.directory / "log" / f"{command[0]}.out"
        return ServerProcess(command[0], command, log=log, env=self._environment)

    def _create(self, bluestore: bool) -> None:
        """Lay out the disks, start monitor and store once, and create the S3 user."""
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._config.write_text(
            _CONFIG.format(
                fsid=fsid,
                mon_port=self._mon_port,
                port=self.port,
                root=self.directory,
                store="bluestore" if bluestore else "memstore",
            )
        )
        monmap = str(self.directory / "monmap")
        address = f"[v2:{LOOPBACK}:{self._mon_port}/0]"
        self._run("monmaptool", "--create", "--clobber", "--addv", "a", address,
                  "--fsid", fsid, "--set-min-mon-release", "pacific", monmap)  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", os.devnull)
        self._mon.start()
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default")
        self._osd.start()
        self._osd.await_ready(self._osd_is_up, _COMMAND_TIMEOUT)
        self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
                  f"--access-key={self.access_key}", f"--secret={self.secret_key}")  # fmt: skip

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_TIMEOUT,
                env={**os.environ, **self._environment},
            )
        except subprocess.TimeoutExpired as error:
            raise ServerError(
                f"{command[0]} {command[1]} did not end in {_COMMAND_TIMEOUT} s. "
                f"Of the monitor, {self._mon.tail()}"
            ) from error
        if done.returncode:
            # Only the first words: further arguments may hold the secret key.
            raise ServerError(
                f"{' '.join(command[:3])} ended with code {done.returncode}: "
                f"{done.stderr.decode(errors='replace').strip()[-2000:]}"
            )
        return done.stdout.decode()

    def _osd_is_up(self) -> bool:
        if not self._mon.running:
            raise ServerError(f"ceph-mon ended: {self._mon.tail()}")
        try:
            return "1 up" in self._run("ceph", "--connect-timeout", "10", "osd", "stat")
        except ServerError:
            return False

    def _answers(self) -> bool:
        try:
            # A listing without credentials: an empty one, or a refusal, both from S3.
            with urllib.request.urlopen(self.endpoint_url, timeout=10):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False


def _require_programs() -> None:
    if not sys.platform.startswith("linux"):
        raise MissingServerError(
            f"CephServer expected Linux, got {sys.platform}: run the tests of a real S3 server "
            "in a Linux container, the others do without."
        )
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise MissingServerError(
            f"CephServer expected the programs {', '.join(_PROGRAMS)}; not installed: "
            f"{', '.join(missing)}. On Debian: apt-get update && apt-get install -y "
            "--no-install-recommends radosgw ceph-mon ceph-osd"
        )
