"""A PostgreSQL server of the tests' own, in a temporary folder, and fresh databases on it.

Without PostgreSQL these tests are skipped, unless ``POOL_REQUIRE_POSTGRES=1`` says that there has
to be one.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from pool.store import open_store
from pool.store.schema import first_meta

#: What makes it quick: nothing of a test has to outlive a power cut.
QUICK = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_connections": "60"}
#: A disk in memory: a database is made on it in a quarter of the time. Some containers have next to
#: nothing there.
MEMORY, ENOUGH = Path("/dev/shm"), 2**32
#: Where distributions keep programs that are not on the path.
FOLDERS = "/usr/lib/postgresql/*/bin"

_numbers = count()


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip, or fail, the test when there is none."""
    found = sorted(Path("/").glob(f"{FOLDERS.lstrip('/')}/initdb"), key=_version)
    path = found[-1] if found else shutil.which("initdb")
    if path is not None:
        return Path(path).parent
    if os.environ.get("POOL_REQUIRE_POSTGRES") == "1":
        pytest.fail("there is no PostgreSQL, and POOL_REQUIRE_POSTGRES=1 says that there must be")
    pytest.skip("there is no PostgreSQL")


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.parts[-3].split(".") if part.isdigit())


def _user() -> str:
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _quickest() -> Path | None:
    """Return where files are written most quickly; None for where temporary files are."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        return MEMORY
    return None


def _new_folder(user: str, above: Path | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=above))
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    return folder


@functools.cache
def _new_data() -> Path:
    """Return the data that each server of this process begins with: it takes longer to make than
    to copy. It goes with the process, as a server does."""
    folder = _new_folder(_user(), _quickest())
    watcher = subprocess.Popen(
        [*_as_user(_user()), "sh", "-c", 'cat; rm -rf "$0"', folder],
        stdin=subprocess.PIPE, cwd="/", start_new_session=True,
    )  # fmt: skip
    atexit.register(watcher.communicate)
    data = folder / "data"
    _run(
        _user(), programs() / "initdb", "--auth=trust", "--username=pool", "--encoding=UTF8",
        "--locale=C.UTF-8", "--no-sync", f"--pgdata={data}",
    )  # fmt: skip
    return data


class PostgresServer:
    """A server that is reached by a socket in its folder alone, and that can be stopped, killed and
    started again. PostgreSQL refuses to run as root, so it is another user's then.

    With an ``address`` it is reached at that, too, by all in its network; ``within`` is what a
    program begins with that is to run on the host which has it.

    It ends, and its folder goes, with the process that has started it, also when that is killed.
    """

    def __init__(
        self,
        settings: dict[str, str] | None = None,
        *,
        above: Path | None = None,
        follows: PostgresServer | None = None,
        address: str = "",
        within: Sequence[str] = (),
    ) -> None:
        self._address, self._within = address, within
        self.programs = programs()
        self.user = _user()
        self.settings = QUICK | (settings or {})
        if os.geteuid() == 0 and above is not None:
            above.chmod(0o711)
        if above is None and self.settings["fsync"] == "off":
            above = _quickest()
        self.folder = _new_folder(self.user, above)
        self.data = self.folder / "data"
        self.databases: list[str] = []
        if follows is not None:
            self._run(
                self.programs / "pg_basebackup", f"--host={follows.folder}", "--username=pool",
                "--checkpoint=fast", "--write-recovery-conf", f"--pgdata={self.data}",
            )  # fmt: skip
        else:
            self._run("cp", "--recursive", "--preserve", _new_data(), self.data)
        if address:
            with (self.data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        # Its input ends when this process does, whatever that dies of.
        self._watcher = subprocess.Popen(
            [*self._as_user(), "sh", "-c",
             'cat; "$0/pg_ctl" stop --silent --mode=immediate --pgdata="$1/data"; rm -rf "$1"',
             self.programs, self.folder],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        options = {**self.settings, "unix_socket_directories": str(self.folder)}
        given = " ".join(f"-c {name}={value}" for name, value in options.items())
        _run(
            self.user, self.programs / "pg_ctl", "start", "--wait", "--silent",
            f"--pgdata={self.data}", f"--log={self.folder / 'log'}",
            f"--options=-c listen_addresses='{self._address}' {given}", within=self._within,
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        self._run(
            self.programs / "pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}",
            f"--pgdata={self.data}",
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def kill(self) -> None:
        """Kill it as a lack of memory would; its children end with it."""
        os.kill(self.pid, signal.SIGKILL)

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement by ``psql``, as an administrator would."""
        return self._run(
            self.programs / "psql", f"--host={self.folder}", "--username=pool",
            f"--dbname={database}", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
            f"--command={statement}",
        ).strip()  # fmt: skip

    def catch_up(self) -> None:
        """Wait until a standby has all that its primary has sent."""
        while self.sql("SELECT pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()") != "f":
            pass

    def new_database(self, *, like: str = "template1") -> str:
        """Make a database, empty or a copy of another one, and return its name."""
        name = f"test{next(_numbers)}"
        with self._connected() as conn:
            # Of the two ways, the one that is quicker without fsync.
            how = "STRATEGY FILE_COPY" if conn.info.server_version >= 150_000 else ""
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {like} {how}")
        self.databases.append(name)
        return name

    def _connected(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="pool", dbname=database, autocommit=True)

    def drop_new(self, before: int) -> None:
        """Drop all databases that were made but the first few, even if they are in use."""
        if len(self.databases) > before:
            with self._connected() as conn:
                while len(self.databases) > before:
                    conn.execute(f"DROP DATABASE {self.databases.pop()} WITH (FORCE)")

    def url(self, database: str, **parameters: str) -> str:
        """Return what a store's URL says to reach a database."""
        named = {"host": str(self.folder), "user": "pool"} | parameters
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in named.items())
        return f"postgresql:///{database}?{query}"

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self._watcher.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _as_user(self) -> Sequence[str]:
        return _as_user(self.user)

    def _run(self, program: str | Path, *arguments: str | Path) -> str:
        return _run(self.user, program, *arguments)


def _as_user(user: str) -> Sequence[str]:
    return ("runuser", "-u", user, "--") if os.geteuid() == 0 else ()


def _run(user: str, program: str | Path, *arguments: str | Path, within: Sequence[str] = ()) -> str:
    # To a file, since the server that pg_ctl starts would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [*within, *_as_user(user), program, *arguments],
            check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
        )  # fmt: skip
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, f"{program}: {said}"
    return said


class Pooler:
    """pgbouncer before a server: connections to the database are lent for a transaction only."""

    def __init__(self, server: PostgresServer, *, size: int) -> None:
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        if not Path(program).exists():
            if os.environ.get("POOL_REQUIRE_POSTGRES") == "1":
                pytest.fail("there is no pgbouncer, and POOL_REQUIRE_POSTGRES=1 says there must be")
            pytest.skip("there is no pgbouncer")
        self._server = server
        settings = server.folder / "pgbouncer.ini"
        settings.write_text(
            f"""[databases]
* = host={server.folder} user=pool
[pgbouncer]
pool_mode = transaction
default_pool_size = {size}
listen_addr =
listen_port = 6432
unix_socket_dir = {server.folder}
auth_type = any
ignore_startup_parameters = extra_float_digits
"""
        )
        settings.chmod(0o644)
        self._process = subprocess.Popen(
            [*server._as_user(), "sh", "-c", '"$0" "$1" & cat; kill $!; wait', program, settings],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        said = ""
        while "process up" not in said:
            said = self._process.stderr.readline()
            assert said, "pgbouncer has ended"

    def url(self, database: str) -> str:
        return self._server.url(database, port="6432")

    def stop(self) -> None:
        self._process.communicate()


@functools.cache
def shared_server() -> PostgresServer:
    """Return the server of this process's tests; it ends with the process."""
    server = PostgresServer()
    atexit.register(server.remove)
    return server


@contextmanager
def databases_dropped() -> Iterator[None]:
    """Drop what is made meanwhile on the shared server: hundreds of databases would fill a disk."""
    before = len(shared_server().databases) if shared_server.cache_info().currsize else 0
    yield
    if shared_server.cache_info().currsize:
        shared_server().drop_new(before)


def fresh_url() -> str:
    """Return the URL of a database of its own on the shared server, which is empty."""
    server = shared_server()
    return server.url(server.new_database())


@functools.cache
def _made() -> str:
    server = shared_server()
    name = server.new_database()
    # It stays, for all tests.
    server.databases.remove(name)
    open_store(server.url(name)).close()
    return name


def made_url() -> str:
    """Return the URL of a store of its own on the shared server, without a row: to make its tables
    takes far longer than to copy them."""
    server = shared_server()
    name = server.new_database(like=_made())
    with server._connected(name) as conn:
        for key, value in first_meta().items():
            conn.execute("UPDATE meta SET value = %s WHERE key = %s", [value, key])
    return server.url(name)
