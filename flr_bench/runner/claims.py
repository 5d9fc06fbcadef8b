"""Claims: who computes which cell, so that several runners can work on one store at once.

::

    <root>/claims/<name>            who holds it; there once, whoever asks for it at the same moment
    <root>/runners/<runner>.json    the heartbeat of a runner: a counter that goes up while it lives
    <root>/tmp/<runner>/            what it is writing

What is asked of the file system: that ``link`` and ``rename`` within a folder are atomic, and that who opens
a file after another has closed it reads what that one wrote (close-to-open consistency: NFS, Lustre, CIFS and
every local file system).  Where links are refused, exclusive creation (``O_EXCL``) does instead.  Nothing is
asked of file locks (``flock``), of times of files, or of clocks that agree or do not jump: whether a runner of
another machine lives is judged by its counter, against the observer's own monotonic clock.

Claims are leases: a runner that was only asleep (a stopped virtual machine) for longer than
:attr:`Timing.stale_seconds` loses its claims without knowing it.  Where that happens, or where the file system
keeps less than it should, two runners may compute the same cell: time is lost, nothing else, since a cell
enters the store by one rename, the first one wins, and cells are pure functions of their inputs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from flr_bench.errors import FlrBenchError

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EXDEV)


@dataclass(frozen=True)
class Timing:
    """How runners watch each other.

    Attributes:
        beat_seconds: between two heartbeats, and two looks at those of others; 0 for neither.
        stale_seconds: a counter that stood still for so long is that of a dead runner.
        wait_seconds: how long :meth:`Claims.exclusive` waits for another.
        clock: seconds that never go back.
    """

    beat_seconds: float = 10.0
    stale_seconds: float = 120.0
    wait_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic

    @property
    def longest_step(self) -> float:
        """What counts at most between two looks: who was asleep itself has seen nothing meanwhile."""
        return max(3 * self.beat_seconds, self.stale_seconds / 4)


@dataclass(frozen=True)
class Identity:
    """Who a runner is.

    Attributes:
        runner: unique name.
        host: as the machine calls itself.
        pid: its process.
        place: where process numbers mean the same: host, boot and pid namespace.
        started: the process's start time in the system's own unit; ``""`` if it cannot be told.
    """

    runner: str
    host: str
    pid: int
    place: str
    started: str

    @classmethod
    def own(cls) -> Identity:
        """Of this process, with a new name each time."""
        host, pid = socket.gethostname() or "localhost", os.getpid()
        runner = f"{quote(host, safe='')}-{pid}-{secrets.token_hex(4)}"
        return cls(runner, host, pid, _place(host), _started(pid) or "")

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """From a claim or a heartbeat; ``None`` if it is gone, or not written to its end."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: content[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def text(self) -> str:
        """For messages."""
        return f"host {self.host}, process {self.pid}"

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; of another machine that cannot be known."""
        if self.place != _place(socket.gethostname() or "localhost"):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's
            pass
        now = _started(self.pid)
        return bool(self.started) and now is not None and now != self.started


def _place(host: str) -> str:
    parts = [host]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """The start time of a process, ``"ended"`` for one that is dead and not yet buried, ``None`` if unknown."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if after_name[0] in ("Z", "X", "x") else after_name[19]


@dataclass
class _Seen:
    """What was seen of another runner's heartbeat."""

    beat: object
    at: float
    still: float = 0.0
    """Seconds for which it stood still under observation."""


@dataclass(eq=False)
class Claims:
    """The claims of one runner; a context manager.

    Args:
        store_root: the store, with its folders made.
        say: receives lines that the user should know of.
        timing: for tests.
        identity: for tests.

    Attributes:
        runner: unique name; also that of its folder below ``tmp``.
    """

    store_root: Path
    say: Callable[[str], None] = lambda _: None
    timing: Timing = field(default_factory=Timing)
    identity: Identity = field(default_factory=Identity.own)

    def __post_init__(self) -> None:
        """Nothing is written yet."""
        self.runner = self.identity.runner
        self._folder = self.store_root / "claims"
        self._runners = self.store_root / "runners"
        self._source = self._folder / f".{self.runner}"
        self._held: set[str] = set()
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._beats = 0
        self._thread: threading.Thread | None = None

    @property
    def scratch(self) -> Path:
        """Where this runner writes what is not finished."""
        return self.store_root / "tmp" / self.runner

    # ------------------------------------------------------------ life
    def __enter__(self) -> Self:
        """Announce the runner, and sweep away what dead ones left.

        Raises:
            FlrBenchError: the store cannot be written.
        """
        try:
            for folder in (self._folder, self._runners, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            self._beat()
            self._source.write_text(json.dumps(asdict(self.identity)), encoding="utf-8")
        except OSError as error:
            raise FlrBenchError(
                f"cannot write to the store {self.store_root}: {error.strerror or error}; mend that or choose "
                "another with --runs"
            ) from error
        self.observe()
        if self.timing.beat_seconds > 0:
            self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of everything, and sweep once more; the heartbeat goes last."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self.observe()
        self.release(list(self._held))
        with contextlib.suppress(OSError):
            self._source.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._path_of(self.runner).unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._ended.wait(self.timing.beat_seconds):
            # A disk that is full or away for a while must not end a run; others wait for long before they judge.
            with contextlib.suppress(OSError):
                self._beat()
                self.observe()

    def _beat(self) -> None:
        self._beats += 1
        path = self._path_of(self.runner)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps({**asdict(self.identity), "beat": self._beats}), encoding="utf-8")
        temporary.replace(path)

    def _path_of(self, runner: str) -> Path:
        return self._runners / f"{runner}.json"

    # ------------------------------------------------------------ claims
    def take(self, names: Iterable[str]) -> bool:
        """Claim all of these or none; claims of dead runners are taken over.

        Args:
            names: hashes of cells, or other names.

        Raises:
            FlrBenchError: the store cannot be written.
        """
        with self._lock:
            new: list[str] = []
            try:
                for name in sorted({*names} - self._held):  # everybody in the same order
                    if not self._take(name):
                        self.release(new)
                        return False
                    self._held.add(name)
                    new.append(name)
            except OSError as error:
                self.release(new)
                raise FlrBenchError(
                    f"cannot write to {self._folder}: {error.strerror or error}; mend that and run again, "
                    "finished cells are kept"
                ) from error
            return True

    def release(self, names: Iterable[str]) -> None:
        """Let go of these, as far as they are held."""
        with self._lock:
            for name in self._held.intersection(names):
                path = self._path(name)
                found = Identity.read(path)
                if found is not None and found.runner == self.runner:  # else it was taken over while this one slept
                    with contextlib.suppress(OSError):
                        path.unlink()
                self._held.discard(name)

    def holder(self, name: str) -> str | None:
        """The living other runner that holds ``name``, in words; ``None`` if there is none."""
        with self._lock:
            path = self._path(name)
            found = Identity.read(path)
            if found is None:
                return "an unknown host" if self._unreadable(path) else None
            return None if found.runner == self.runner or self._is_dead(found) else found.text

    @contextlib.contextmanager
    def exclusive(self, name: str, doing: str = "", *, wait: bool = True) -> Iterator[None]:
        """Keep other runners out meanwhile; for what is read, changed and written back.

        Args:
            name: of what is changed.
            doing: what the message says that the other does, for example ``"is tuning main@1"``.
            wait: try for :attr:`Timing.wait_seconds` before giving up, else once.

        Raises:
            FlrBenchError: another runner keeps it.
        """
        until = self.timing.clock() + (self.timing.wait_seconds if wait else 0.0)
        while not self.take([name]):
            if self.timing.clock() >= until:
                who = self.holder(name) or "unknown"
                raise FlrBenchError(
                    f"another run {doing or f'is changing {name}'} in the store {self.store_root} ({who}); "
                    "wait for it or choose another with --runs"
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release([name])

    def _path(self, name: str) -> Path:
        return self._folder / quote(name, safe="@+")

    def _take(self, name: str) -> bool:
        path = self._path(name)
        if self._create(path):
            return True
        found = Identity.read(path)
        if found is None:  # released just now, or never written to its end
            return self._create(path) or (self._unreadable(path) is False and self._take_over(path, None))
        return self._is_dead(found) and self._take_over(path, found)

    def _create(self, path: Path) -> bool:
        """Make the claim unless it is there."""
        try:
            os.link(self._source, path)
        except FileExistsError:
            return self._is_own(path)
        except OSError as error:
            if self._is_own(path):  # NFS may repeat a call whose answer was lost
                return True
            if error.errno not in _NO_LINKS:
                raise
            return self._create_alone(path)
        return True

    def _is_own(self, path: Path) -> bool:
        try:
            return path.samefile(self._source)
        except OSError:
            return False

    def _create_alone(self, path: Path) -> bool:
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(asdict(self.identity), file)
        except FileExistsError:
            return False
        return True

    def _take_over(self, path: Path, victim: Identity | None) -> bool:
        """Put our claim in place of a dead runner's; of several who try, one does.

        The right to do so is a file of its own.  Who gets it looks again: the claim may be a living one by now.
        """
        right = path.with_name(f".over-{path.name}")
        if not self._create(right):
            taker = Identity.read(right)
            if taker is not None and self._is_dead(taker):  # killed in the few milliseconds below
                with contextlib.suppress(OSError):
                    right.rename(right.with_name(f"{right.name}-{self.runner}"))
                    right.with_name(f"{right.name}-{self.runner}").unlink()
            return False
        try:
            found = Identity.read(path)
            if (found and found.runner) != (victim and victim.runner) or (found is None and not path.exists()):
                return False
            temporary = path.with_name(f".new-{path.name}-{self.runner}")
            temporary.write_text(json.dumps(asdict(self.identity)), encoding="utf-8")
            temporary.replace(path)
            return True
        finally:
            with contextlib.suppress(OSError):
                right.unlink()

    # ------------------------------------------------------------ who lives
    def observe(self) -> None:
        """Look at every runner's heartbeat, and sweep away what dead ones left."""
        with self._lock:
            for path in sorted(self._runners.glob("*.json")):
                found = Identity.read(path)
                if found is None or found.runner == self.runner:
                    continue
                # One that stands still loses its claims when somebody wants them; what it wrote stays, it may wake up.
                if self._is_dead(found) and found.is_gone():
                    self._bury(found)

    def _is_dead(self, other: Identity) -> bool:
        return other.is_gone() or self._stands_still(other.runner, self._heartbeat(other.runner))

    def _heartbeat(self, runner: str) -> object:
        try:
            beat: object = json.loads(self._path_of(runner).read_text(encoding="utf-8")).get("beat")
        except (OSError, ValueError, AttributeError):
            return None
        return beat

    def _stands_still(self, key: str, beat: object) -> bool:
        now = self.timing.clock()
        seen = self._seen.get(key)
        if seen is None or seen.beat != beat:
            self._seen[key] = _Seen(beat, now)
            return False
        seen.still += min(max(now - seen.at, 0.0), self.timing.longest_step)
        seen.at = now
        return seen.still >= self.timing.stale_seconds

    def _unreadable(self, path: Path) -> bool | None:
        """Whether there is a claim that says nothing and may yet be written; ``None`` if there is none."""
        try:
            state = path.stat()
        except OSError:
            return None
        return not self._stands_still(f"/{path.name}", (state.st_ino, state.st_size))

    def _bury(self, dead: Identity) -> None:
        """Remove what a dead runner left: claims, unfinished cells, at last its heartbeat."""
        for path in sorted(self._folder.iterdir()):
            found = Identity.read(path)
            if found is None or found.runner != dead.runner:
                continue
            if path.name.startswith(".") or self._take_over(path, dead):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.store_root / "tmp" / dead.runner, ignore_errors=True)
        self._path_of(dead.runner).unlink(missing_ok=True)
        self._seen.pop(dead.runner, None)
