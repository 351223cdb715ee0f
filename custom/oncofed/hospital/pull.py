"""Pull a cohort's images from an archive into a folder.

A folder holds ``images/``, which is registered, ``pulled.csv``, the log, and the key of its files' names. A pull can
end at any object, and the same command goes on; a later pull fetches what is new, and says what has vanished.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from oncofed.audit import AuditLog
from oncofed.data.deidentify import Options, read_key
from oncofed.errors import SpecError, TransferError
from oncofed.hospital.archive import (
    AccessRefusedError,
    Archive,
    ArchiveAwayError,
    HoursOverError,
    Instance,
    Series,
    Stopped,
)
from oncofed.hospital.cohort import Cohort
from oncofed.hospital.connections import Connect, connections
from oncofed.hospital.landing import Arrived, Landing
from oncofed.hospital.pace import Pace
from oncofed.hospital.plan import Plan, Planner, Progress
from oncofed.hospital.pulled import Line, PulledLog
from oncofed.hospital.settings import DeidentifySettings, PacsSettings
from oncofed.locking import sole_process
from oncofed.privacy.policy import read_policy
from oncofed.private_files import random_secret, write_private

STATE_FILE = "pull.json"
KEY_FILE = "key"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_LOOK_SECONDS = 0.2
_END_SECONDS = 5.0
_MOST_TRIES = 3  # of a series whose objects the archive names and does not send
_GB = 10**9
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PullOptions:
    """What is pulled, from where, and where to.

    Attributes:
        cohort: whose images.
        settings: of the archive.
        folder: of the pull; created if missing, readable by its owner alone.
        key_file: secret from which pseudonyms follow, where images are de-identified.
        deidentify: how; None: images are kept as they are.
    """

    cohort: Cohort
    settings: PacsSettings
    folder: Path
    key_file: Path
    deidentify: Options | None = None


@dataclass
class PullOutcome:
    """What a pull found and fetched.

    Attributes:
        plan: what the archive has of the cohort.
        arrived: what was fetched this time.
        patients: number of patients of the cohort's studies.
        there: objects of these series that were in the folder before.
        vanished: objects in the folder that the archive has no more, found out this time.
        elsewhere: objects in the folder of studies that the cohort no longer has.
        moved: studies that are another patient's now; their objects were fetched again.
        lost: objects whose file was gone or of another size; they were fetched again.
        missing: objects that the archive names and did not send.
        why: the last reason that the archive gave for not sending one.
        groups: keyed digests of PatientIDs that may be of one person.
        files: paths inside the folder of what is here of the cohort, and still in the archive.
    """

    plan: Plan
    arrived: Arrived
    patients: int = 0
    there: int = 0
    vanished: int = 0
    elsewhere: int = 0
    moved: int = 0
    lost: int = 0
    missing: int = 0
    why: str = ""
    groups: list[tuple[str, ...]] = field(default_factory=list)
    files: frozenset[str] = frozenset()


def deidentify_options(settings: PacsSettings, kit: Path | None) -> Options | None:
    """Return how images are de-identified; a site's policy may ask for it where ``pacs.yaml`` does not.

    Args:
        settings: of the archive.
        kit: of the site; None: it has none.

    Raises:
        SpecError: the kit is none.
    """
    wanted = settings.deidentify
    if kit is not None:
        policy = read_policy(kit / "local")
        if policy is None:
            raise SpecError(f"{kit}: it is no site's kit. Name its folder with --site, or leave it out")
        if policy.pacs.deidentify and wanted is None:
            wanted = DeidentifySettings()
    return Options(wanted.keep_dates, wanted.keep_device, wanted.keep_burned_in) if wanted else None


def record(kit: Path, options: PullOptions) -> None:
    """Record a pull in a site's audit log.

    Raises:
        AuditError: it cannot be written.
    """
    AuditLog(kit).write("images pulled from the archive", cohort=options.cohort.digest, host=options.settings.host)


def pull(options: PullOptions, progress: Progress, notify: Callable[[str], None]) -> PullOutcome:
    """Pull a cohort's images.

    Args:
        options: what, from where, and where to.
        progress: called with (step, number done, number in all).
        notify: called with a line of text that names no patient.

    Raises:
        SpecError: the folder or the settings cannot be used.
        DataError: the folder's log or key cannot be used.
        TransferError: the archive does not answer, or lets nobody in; what has arrived is kept.
        DiskFullError: what has arrived is kept.
    """
    folder = options.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = SpecError(f"{folder}: another process pulls into this folder. Wait for its end, or name another --out")
    with sole_process(folder / ".lock", busy), connections(options.settings) as connect:
        _require_same(folder, options.deidentify)
        key = read_key(options.key_file) if options.deidentify else random_secret(folder / KEY_FILE)
        with contextlib.closing(PulledLog(folder)) as log:
            return _Pull(options, log, key, connect, progress, notify).run()


def _require_same(folder: Path, deidentify: Options | None) -> None:
    """Require that a folder's images are de-identified as before.

    Raises:
        SpecError: they are not, or the folder is another's.
    """
    state = {"schema": 1, "deidentify": asdict(deidentify) if deidentify else None}
    file = folder / STATE_FILE
    if not file.exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise SpecError(f"{folder}: it holds other files. Name a new folder with --out, or that of an earlier pull")
        write_private(file, (json.dumps(state) + "\n").encode())
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SpecError(f"{file}: cannot be read. Name another folder with --out") from None
    if before != state:
        how = "de-identified in another way" if deidentify and before.get("deidentify") else "not de-identified"
        how = how if deidentify else "de-identified"
        raise SpecError(f"{folder}: its images are {how}, and these would not be. Name another folder with --out")


class _Pull:
    """One run of a pull, whose threads fetch a series each."""

    def __init__(
        self,
        options: PullOptions,
        log: PulledLog,
        key: bytes,
        connect: Connect,
        progress: Progress,
        notify: Callable[[str], None],
    ) -> None:
        settings = options.settings
        self._options, self._log, self._connect = options, log, connect
        self._progress, self._notify = progress, notify
        self._stop = threading.Event()
        self._pace = Pace(settings.megabits, settings.windows, notify, self._stop)
        self._landing = Landing(
            options.folder, log, key, options.deidentify, self._pace, int(settings.keep_free_gb * _GB), self._stop
        )
        self._patience = settings.patience_minutes * 60
        self._lock = threading.Lock()
        self._told_away = False
        self._moved: set[str] = set()
        self._failure: BaseException | None = None
        self.outcome = PullOutcome(Plan(), self._landing.arrived)

    def run(self) -> PullOutcome:
        """Find the cohort's series, and fetch what is not there."""
        outcome = self.outcome
        self._landing.require_room()
        outcome.lost = self._log.forget_lost_files()
        try:
            with contextlib.closing(_Reconnecting(self._connect)) as archive:
                asked = lambda ask: self._patiently(lambda: ask(archive.now()))  # noqa: E731
                outcome.plan = plan = Planner(asked, self._progress).plan(self._options.cohort)
                self._look_for_vanished(plan, asked)
            outcome.patients = len({study.patient for study in plan.studies.values()})
            outcome.groups = [tuple(map(self._landing.digest, group)) for group in plan.one_person]
            self._fetch(plan)
            outcome.files = frozenset(self._files(plan))
        except KeyboardInterrupt:
            self._notify(f"{self._landing.arrived.objects:,} objects arrived and are kept; the same command goes on")
            raise
        finally:
            self._stop.set()
            self._landing.clear()
        return outcome

    def _files(self, plan: Plan) -> Iterator[str]:
        for series in plan.series.values():
            owner = self._landing.digest(series.study.patient)
            for line in self._log.series(series.uid).values():
                if line.state == "kept" and line.patient == owner:
                    yield line.file

    def _look_for_vanished(
        self, plan: Plan, asked: Callable[[Callable[[Archive], list[object]]], list[object]]
    ) -> None:
        """Find series in the folder that the archive does not name for this cohort."""
        for uid, study in self._log.all_series().items():
            kept = [line for line in self._log.series(uid).values() if line.state == "kept"]
            if uid in plan.series or not kept:
                continue
            if study in plan.studies:
                series = Series(plan.studies[study], uid)
                if asked(lambda archive, series=series: archive.instances(series)):  # type: ignore[misc]
                    self.outcome.elsewhere += len(kept)
                    continue
            elif asked(lambda archive, study=study: archive.studies({"StudyInstanceUID": study})):  # type: ignore[misc]
                self.outcome.elsewhere += len(kept)
                continue
            self._vanish(kept)

    def _vanish(self, lines: list[Line]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for line in lines:
            self._log.add(Line(**{**vars(line), "time": now, "state": "vanished"}))
        with self._lock:
            self.outcome.vanished += len(lines)

    # --- threads

    def _fetch(self, plan: Plan) -> None:
        waiting: queue.SimpleQueue[Series] = queue.SimpleQueue()
        for series in plan.series.values():
            self._landing.expect(series)
            waiting.put(series)
        total = sum(series.count or 0 for series in plan.series.values())
        count = min(self._options.settings.connections, len(plan.series))
        threads = [
            threading.Thread(target=self._work, args=(waiting,), name=f"pull-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                self._show(total)
                time.sleep(_LOOK_SECONDS)
        finally:
            self._stop.set()
            end = time.monotonic() + _END_SECONDS
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        self._show(total)
        if self._failure:
            raise self._failure

    def _show(self, total: int) -> None:
        arrived, there = self._landing.arrived, self.outcome.there
        done = arrived.objects + sum(arrived.left_out.values()) + there
        self._progress("objects", done, max(total, done))

    def _work(self, waiting: queue.SimpleQueue[Series]) -> None:
        archive = _Reconnecting(self._connect)
        try:
            while not self._stop.is_set():
                self._take(waiting.get_nowait(), archive)
        except (queue.Empty, Stopped):
            pass
        except BaseException as error:  # noqa: BLE001 - is raised where the command waits
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()
        finally:
            with contextlib.suppress(Exception):
                archive.close()

    def _take(self, series: Series, archive: _Reconnecting) -> None:
        """Fetch what the folder does not hold of a series."""
        known = self._log.series(series.uid)
        kept = {uid: line for uid, line in known.items() if line.state != "vanished"}
        owner = self._landing.digest(series.study.patient)
        moved = bool(kept) and any(line.patient != owner for line in kept.values())
        if moved:
            with self._lock:
                self._moved.add(series.study.uid)
                self.outcome.moved = len(self._moved)
            kept = {}
        with self._lock:
            self.outcome.there += len(kept)
        if not kept:
            self._whole(series, archive)
            if self._count(series, owner) == series.count:
                return
        try:
            listed = self._fetch_rest(series, owner, archive)
        except (ArchiveAwayError, AccessRefusedError):
            raise
        except TransferError as error:  # an archive may not even list a series of which it lost a file
            self._miss(max(1, (series.count or 0) - self._count(series, owner)), str(error))
            return
        missing = [one for one in listed if not self._has(series, one.uid, owner)]
        self._miss(len(missing))
        there = {one.uid for one in listed}
        gone = [line for line in self._log.series(series.uid).values() if line.instance not in there]
        self._vanish([line for line in gone if line.state == "kept"])

    def _fetch_rest(self, series: Series, owner: str, archive: _Reconnecting) -> list[Instance]:
        """Fetch the instances of a series that are not there, until none is left or no more come; return them all."""
        tries = 0
        while True:
            listed = self._patiently(lambda: archive.now().instances(series))
            count = self._count(series, owner)
            if tries == _MOST_TRIES or all(self._has(series, one.uid, owner) for one in listed):
                return listed
            self._patiently(lambda: self._rest(series, listed, owner, archive))  # noqa: B023
            if self._count(series, owner) == count:
                tries += 1
                self._pace.wait(tries)

    def _miss(self, count: int, why: str = "") -> None:
        with self._lock:
            self.outcome.missing += count
            self.outcome.why = why or self.outcome.why

    def _whole(self, series: Series, archive: _Reconnecting) -> None:
        """Fetch a whole series; where that breaks off it is listed, and the rest fetched."""
        self._pace.wait_for_hours()
        try:
            archive.now().fetch(series, None, self._landing.begin)
        except HoursOverError:
            pass
        except (ArchiveAwayError, AccessRefusedError) as error:
            archive.close()
            self._tell_away(error)
        except TransferError:  # perhaps of a single object
            pass

    def _rest(self, series: Series, listed: list[Instance], owner: str, archive: _Reconnecting) -> None:
        """Fetch the instances of a list that are not there."""
        wanted = [one for one in listed if not self._has(series, one.uid, owner)]
        try:
            if wanted:
                archive.now().fetch(series, wanted, self._landing.begin)
        except (ArchiveAwayError, AccessRefusedError):
            archive.close()
            raise
        except TransferError as error:  # of some objects, which are counted as missing in the end
            self._miss(0, str(error))

    def _has(self, series: Series, instance: str, owner: str) -> bool:
        line = self._log.line(series.uid, instance)
        there = line is not None and line.state != "vanished" and line.patient == owner
        return there or self._landing.is_others(series.uid, instance)

    def _count(self, series: Series, owner: str) -> int:
        lines = self._log.series(series.uid).values()
        there = sum(line.state != "vanished" and line.patient == owner for line in lines)
        return there + self._landing.count_of_others(series.uid)

    # --- patience

    def _patiently(self, work: Callable[[], _Result]) -> _Result:
        """Do something, and again while the archive does not answer.

        Raises:
            ArchiveAwayError: for too long.
            AccessRefusedError: for too long; a person may bring a new token meanwhile.
        """
        pause, since, seen = _FIRST_PAUSE, time.monotonic(), self._landing.arrived.bytes
        while True:
            if self._pace.wait_for_hours():
                since = time.monotonic()
            try:
                result = work()
            except HoursOverError:
                continue
            except (ArchiveAwayError, AccessRefusedError) as error:
                if self._landing.arrived.bytes != seen:
                    pause, since, seen = _FIRST_PAUSE, time.monotonic(), self._landing.arrived.bytes
                if time.monotonic() - since + pause > self._patience:
                    raise self._given_up(error) from None
                self._tell_away(error)
                self._pace.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if self._told_away:
                    self._told_away = False
                    self._notify("the archive answers again")
                return result

    def _tell_away(self, error: TransferError) -> None:
        if not self._patience:
            return
        with self._lock:
            tells, self._told_away = not self._told_away, True
        if tells:
            self._notify(f"{error}; it is asked again for {self._patience / 60:g} minutes")

    def _given_up(self, error: TransferError) -> TransferError:
        kept = self._landing.arrived.objects
        return type(error)(f"{error}. {kept:,} objects arrived and are kept; the same command goes on with the rest")


class _Reconnecting:
    """A connection that is opened when it is needed, and again after it failed."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._archive: Archive | None = None

    def now(self) -> Archive:
        """Return an open connection."""
        if self._archive is None:
            self._archive = self._connect()
        return self._archive

    def close(self) -> None:
        """End it; the next use opens another."""
        archive, self._archive = self._archive, None
        if archive is not None:
            with contextlib.suppress(Exception):
                archive.close()
