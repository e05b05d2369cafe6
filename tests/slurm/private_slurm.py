"""A real Slurm on one machine: controller, accounting and two nodes, all on loopback ports, gone afterwards.

As root on Debian, with INSTALL_SLURM=1, the packages are installed. Two partitions share the nodes: jobs of `urgent`
preempt those of `batch`, which Slurm then requeues.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server-core", "mariadb-client-core")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
SECONDS = 30


class Missing(Exception):
    """Slurm cannot be started here: why."""


def install() -> None:
    """Have the daemons. Raises Missing."""
    if all(shutil.which(daemon) for daemon in DAEMONS):
        return
    if os.environ.get("INSTALL_SLURM") != "1":
        raise Missing("Slurm is not installed; `make test-slurm` installs it on Debian as root")
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Missing("Slurm is not installed, and only root on Debian or Ubuntu can install it here")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update", "-qq"), ("install", "-y", "-qq", "--no-install-recommends", *PACKAGES)):
        ended = subprocess.run(["apt-get", *words], env=environment, check=False, capture_output=True, text=True)
        if ended.returncode:
            raise Missing(f"Slurm could not be installed: {(ended.stderr.strip() or ended.stdout).splitlines()[-1]}")


class PrivateSlurm:
    """Start it with `start`, end it with `stop`.

    Attributes:
        folder: of everything it writes.
        environment: what its commands need: SLURM_CONF.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
        self._ports = _free_ports(5)
        self._database: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Bring everything up. Raises Missing where this machine does not let it."""
        if os.geteuid() != 0:
            raise Missing("a Slurm of one's own starts only as root")
        for name in ("etc", "run", "log", "state", "data", "tmp", "spool/n1", "spool/n2"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc").chmod(0o700)
        self._configure()
        self._start_munge()
        self._start_database()
        self._daemon("slurmdbd")
        self._until("accounting", lambda: self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode == 0)
        for words in (("cluster", "private"), ("account", "tests"), ("user", "root", "account=tests")):
            self.run("sacctmgr", "-iQ", "add", *words)
        self._daemon("slurmctld")
        for node in ("n1", "n2"):
            self.start_node(node)
        self._until("two idle nodes", lambda: self.nodes() == {"n1": "idle", "n2": "idle"})

    def stop(self) -> None:
        """End every daemon, the jobs' processes with their nodes."""
        subprocess.run(["scancel", "--user=root"], env={**os.environ, **self.environment}, check=False)
        for name in ("slurmd.n1", "slurmd.n2", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.end(name)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands."""
        ended = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def nodes(self) -> dict[str, str]:
        """State of each node."""
        lines = self.run("sinfo", "-hN", "-p", "batch", "-o", "%N %T", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)

    def start_node(self, name: str) -> None:
        """Start one node's daemon."""
        self._daemon("slurmd", "-N", name)

    def end(self, name: str) -> None:
        """End the daemon whose process id lies in run/NAME.pid, and wait for that."""
        file = self.folder / "run" / f"{name}.pid"
        if not file.exists():
            return
        process = int(file.read_text())
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
            deadline = time.monotonic() + seconds
            while _alive(process) and time.monotonic() < deadline:
                time.sleep(0.05)
        file.unlink(missing_ok=True)
        if self._database and self._database.pid == process:
            self._database.wait()

    def kill_node(self, name: str) -> None:
        """End a node's daemon and everything that runs on it, as a power cut does."""
        file = self.folder / "run" / f"slurmd.{name}.pid"
        for process in (daemon := int(file.read_text()), *_descendants(daemon)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        file.unlink()

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        control, accounting, database, first, second = self._ports
        self._database_port = database
        socket_path = folder / "run" / "munge.sock"
        # A job that starts again waits until its credentials have expired: two minutes by default.
        (folder / "etc" / "slurm.conf").write_text(f"""\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
AuthInfo=socket={socket_path},cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={socket_path}
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
SlurmdTimeout=10
MessageTimeout=10
MinJobAge=300
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first},{second}] CPUs=2 RealMemory=4000
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
""")
        secret = folder / "etc" / "slurmdbd.conf"
        secret.touch(mode=0o600)
        secret.write_text(f"""\
AuthInfo=socket={socket_path}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=slurm
""")

    def _start_munge(self) -> None:
        key, run = self.folder / "etc" / "munge.key", self.folder / "run"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key": key, "socket": run / "munge.sock", "pid": run / "munged.pid", "seed": run / "munged.seed"}
        files["log"] = self.folder / "log" / "munged.log"
        flags = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
        subprocess.run(["munged", *flags], check=True)

    def _start_database(self) -> None:
        data, log = self.folder / "data", (self.folder / "log" / "mariadb.log").open("wb")
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], stdout=log, stderr=log, check=True)
        door = self.folder / "run" / "database.sock"
        command = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--tmpdir={self.folder / 'tmp'}", "--user=root"]
        command += ["--bind-address=127.0.0.1", f"--port={self._database_port}", f"--socket={door}"]
        command += [f"--pid-file={self.folder / 'run' / 'mariadbd.pid'}"]
        self._database = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        user = "create user slurm@'127.0.0.1' identified by 'slurm'; create user slurm@localhost identified by 'slurm';"
        grants = "".join(f"grant all on slurm_acct_db.* to slurm@'{host}';" for host in ("127.0.0.1", "localhost"))
        ask = ["mariadb", "--no-defaults", "-S", str(door), "-e", user + grants]
        self._until("the database", lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0)

    def _daemon(self, *words: str) -> None:
        subprocess.run(words, env={**os.environ, **self.environment}, check=True, stdout=subprocess.DEVNULL)

    def _until(self, what: str, true) -> None:
        deadline = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > deadline:
                logs = "".join(path.read_text(errors="replace")[-600:] for path in (self.folder / "log").glob("*.log"))
                raise Missing(f"{what} did not come up within {SECONDS} s:\n{logs}")
            time.sleep(0.1)


def _alive(process: int) -> bool:
    """Whether it runs; one that has ended and whose parent has not asked does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for known in found:
        found += [process for process, parent in parents.items() if parent == known]
    return found[1:]


def _free_ports(count: int) -> list[int]:
    held = []
    for _ in range(count):
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        held.append(probe)
    ports = [probe.getsockname()[1] for probe in held]
    for probe in held:
        probe.close()
    return ports
