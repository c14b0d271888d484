"""Copies of far files: whole, bounded, fetched once, and safe for many processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from far_store import FarStore
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data import files
from xmatch.data.local_cache import FETCHING, CacheConfig, LocalCache
from xmatch.errors import InputError

fork = multiprocessing.get_context("fork")


@pytest.fixture
def far(tmp_path: Path, monkeypatch) -> FarStore:
    (tmp_path / "far" / "set").mkdir(parents=True)
    return FarStore(tmp_path / "far", tmp_path / "log").install(monkeypatch)


def cache(tmp_path: Path, limit: int) -> LocalCache:
    return LocalCache(CacheConfig(folder=str(tmp_path / "cache"), limit_gb=limit / 1e9))


def put(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / "far" / "set" / name).write_bytes(data)
    return f"far://set/{name}"


def get(copies: LocalCache, uri: str) -> bytes:
    with copies.open(uri) as path:
        return files.read_bytes(path)


def copies_of(folder: Path) -> dict[str, int]:
    """Bytes by name of all in the folder but its lock."""
    return {p.name: p.stat().st_size for p in folder.iterdir() if p.name != ".lock"} if folder.exists() else {}


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=4, max_size=8),
    st.lists(st.integers(0, 7), min_size=10, max_size=30),
    st.integers(50, 400),
)
def test_the_bound_holds_after_every_get_and_the_least_recently_used_goes_first(sizes, order, limit) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "far" / "set").mkdir(parents=True)
        FarStore(folder / "far", folder / "log").install(patch)
        uris = [put(folder, f"{i}", content(i, size)) for i, size in enumerate(sizes)]
        copies, used = cache(folder, limit), {}
        for now, number in enumerate(order):
            number %= len(sizes)
            before = set(copies_of(folder / "cache"))
            with copies.open(uris[number]) as path:
                assert files.read_bytes(path) == content(number, sizes[number])
                assert (path == uris[number]) == (sizes[number] > limit)
                used[Path(path).name] = now
            after = copies_of(folder / "cache")
            assert sum(after.values()) <= limit
            assert not any(FETCHING in name for name in after)
            gone = [used[name] for name in before - set(after)]
            kept = [used[name] for name in before & set(after)]
            assert not gone or not kept or max(gone) < min(kept)
            assert not gone or sum(after.values()) <= max(0.9 * limit, sizes[number])


def test_a_copy_that_is_there_asks_the_store_for_nothing(tmp_path: Path, far: FarStore) -> None:
    uris = [put(tmp_path, f"{i}.jpg", content(i, 100)) for i in range(3)]
    copies = cache(tmp_path, 1000)
    first = [get(copies, uri) for uri in uris]
    asked = far.log.read_text()
    for i in range(3):
        os.unlink(tmp_path / "far" / "set" / f"{i}.jpg")
    assert [get(copies, uri) for uri in uris] == first == [content(i, 100) for i in range(3)]
    assert far.log.read_text() == asked


def test_another_process_looks_many_objects_up_at_once_and_fetches_none(tmp_path: Path, far: FarStore) -> None:
    uris = [put(tmp_path, f"{i}", content(i, 100)) for i in range(5)]
    for uri in uris:
        get(cache(tmp_path, 1000), uri)
    far.log.write_text("")
    later = cache(tmp_path, 1000)
    later.learn([*uris, "far://set/absent", str(tmp_path / "local")])
    assert [get(later, uri) for uri in uris] == [content(i, 100) for i in range(5)]
    assert (len(far.asked("list")), far.asked("look"), far.asked("fetch")) == (1, [], [])


@pytest.mark.parametrize("size", [100, 101])
def test_a_changed_object_is_fetched_anew(tmp_path: Path, far: FarStore, size: int) -> None:
    uri = put(tmp_path, "a", content(0, 100))
    assert get(cache(tmp_path, 1000), uri) == content(0, 100)
    put(tmp_path, "a", content(1, size))
    os.utime(tmp_path / "far" / "set" / "a", (time.time() + 5, time.time() + 5))
    assert get(cache(tmp_path, 1000), uri) == content(1, size)
    assert far.asked("fetch") == ["set/a", "set/a"]


def test_an_object_that_changes_while_it_is_read_is_refused(tmp_path: Path, far: FarStore) -> None:
    uri = put(tmp_path, "a", content(0, 100))
    far.pause = lambda _: os.utime(tmp_path / "far" / "set" / "a", (9e8, 9e8))
    with pytest.raises(InputError, match="changed while it was read"):
        get(cache(tmp_path, 1000), uri)
    assert copies_of(tmp_path / "cache") == {}


def test_local_paths_are_given_back_and_nothing_is_made(tmp_path: Path, far: FarStore) -> None:
    (tmp_path / "x").write_bytes(b"x")
    copies = cache(tmp_path, 10)
    assert copies.hold(str(tmp_path / "x")) == copies.hold(f"file://{tmp_path}/x") == str(tmp_path / "x")
    with copies.open("relative/x") as path:
        assert path == "relative/x"
    copies.learn([str(tmp_path / "x")])
    assert not (tmp_path / "cache").exists()
    assert far.log.read_text() == ""


def test_what_does_not_fit_is_read_from_the_store_or_named(tmp_path: Path, far: FarStore) -> None:
    uri, copies = put(tmp_path, "large.tar", content(0, 100)), cache(tmp_path, 99)
    with copies.open(uri) as path:
        assert path == uri
    with pytest.raises(InputError, match=r"'far://set/large.tar' has 100 bytes.* may hold 99 .*cache.limit_gb"):
        copies.hold(uri)
    assert copies_of(tmp_path / "cache") == {}
    for absent in (copies.hold, lambda uri: get(copies, uri)):
        with pytest.raises(InputError, match="'far://set/absent' does not exist"):
            absent("far://set/absent")


def test_what_is_held_stays_and_counts(tmp_path: Path, far: FarStore) -> None:
    uris = [put(tmp_path, f"{i}.arrow", content(i, 40)) for i in range(6)]
    copies = cache(tmp_path, 100)
    held = copies.hold(uris[0])
    assert held.endswith(".arrow")
    for number in (1, 2, 3, 4, 5, 1, 2):
        assert get(copies, uris[number]) == content(number, 40)
        assert Path(held).read_bytes() == content(0, 40)
        assert sum(copies_of(tmp_path / "cache").values()) <= 100
    assert copies.hold(uris[0]) == held
    assert Path(copies.hold(uris[1])).read_bytes() == content(1, 40)
    with copies.open(uris[2]) as path:
        assert path == uris[2]
    with pytest.raises(InputError, match="with what is in use there"):
        copies.hold(uris[3])
    with copies.open(uris[0]) as path:
        assert path == held


def test_a_fetch_that_fails_leaves_nothing_and_gives_its_room_back(tmp_path: Path, far: FarStore) -> None:
    uri = put(tmp_path, "a", content(0, 60))

    def fail(_: str) -> None:
        raise OSError("the network is gone")

    copies, far.pause = cache(tmp_path, 100), fail
    for _ in range(3):
        with pytest.raises(InputError, match="'far://set/a' cannot be read: the network is gone"):
            get(copies, uri)
        assert copies_of(tmp_path / "cache") == {}
    far.pause = lambda _: None
    with copies.open(uri) as path:
        assert path != uri


@pytest.mark.parametrize("said", [b"", b"nonsense"])
def test_a_broken_record_of_what_is_there_is_made_again(tmp_path: Path, far: FarStore, said: bytes) -> None:
    uris = [put(tmp_path, f"{i}", content(i, 40)) for i in range(4)]
    for uri in uris[:2]:
        get(cache(tmp_path, 100), uri)
    (tmp_path / "cache" / ".lock").write_bytes(said)
    for uri in uris:
        get(cache(tmp_path, 100), uri)
        assert sum(copies_of(tmp_path / "cache").values()) <= 100


def test_a_copy_that_was_cut_short_is_fetched_again(tmp_path: Path, far: FarStore) -> None:
    uri = put(tmp_path, "a", content(0, 40))
    with cache(tmp_path, 100).open(uri) as path:
        pass
    os.truncate(path, 20)
    assert get(cache(tmp_path, 100), uri) == content(0, 40)


def read_all(tmp_path: Path, limit: int, seed: int, sizes: list[int], failed) -> None:
    copies, draw = cache(tmp_path, limit), random.Random(seed)
    for _ in range(60):
        number = draw.randrange(len(sizes))
        if get(copies, f"far://set/{number}") != content(number, sizes[number]):
            failed.set()


@pytest.mark.parametrize(("limit", "is_roomy"), [(100_000, True), (6_000, False)])
def test_processes_share_the_folder(tmp_path: Path, far: FarStore, limit: int, is_roomy: bool) -> None:
    sizes = [1000 + 37 * i for i in range(12)]
    for i, size in enumerate(sizes):
        put(tmp_path, f"{i}", content(i, size))
    far.pause = lambda _: time.sleep(0.002)
    failed = fork.Event()
    workers = [fork.Process(target=read_all, args=(tmp_path, limit, seed, sizes, failed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        with _names_stand_still(tmp_path / "cache"):
            most = max(most, sum(copies_of(tmp_path / "cache").values()))
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not failed.is_set()
    assert 0 < most <= limit
    fetches = Counter(far.asked("fetch"))
    assert fetches == Counter(f"set/{i}" for i in range(12)) if is_roomy else max(fetches.values()) > 1


def _names_stand_still(folder: Path):
    return LocalCache(CacheConfig(folder=str(folder)))._locked()


@pytest.mark.s3
@pytest.mark.slow
def test_a_real_store_is_read_by_forked_processes_and_looks_alike_listed_and_asked(tmp_path, s3_environment, become):
    become(s3_environment)
    sizes = [10, 1000, 70_000]
    uris = [f"s3://runs/copies/{i}.jpg" for i in range(len(sizes))]
    for i, uri in enumerate(uris):
        files.write_bytes(uri, content(i, sizes[i]))
    listed, asked = cache(tmp_path, 100_000), cache(tmp_path, 100_000)
    listed.learn(uris)
    assert listed._stamps == {uri: asked._stamp(uri) for uri in uris}
    failed = fork.Event()

    def read() -> None:
        if [get(listed, uri) for uri in uris] != [content(i, size) for i, size in enumerate(sizes)]:
            failed.set()

    workers = [fork.Process(target=read) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert not failed.is_set()
    assert sorted(copies_of(tmp_path / "cache").values()) == sizes


def killed_while_it_fetches(tmp_path: Path, far: FarStore, uri: str, limit: int):
    """A process that waits in the middle of a fetch; and what ends it."""
    reached = fork.Event()

    def pause(_: str) -> None:
        pause.calls += 1
        if pause.calls == 3:
            reached.set()
            time.sleep(60)

    pause.calls, far.pause = 0, pause
    process = fork.Process(target=get, args=(cache(tmp_path, limit), uri))
    process.start()
    far.pause = lambda _: None
    assert reached.wait(20)

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    return kill


def test_half_a_file_of_a_killed_process_never_counts_as_one(tmp_path: Path, far: FarStore) -> None:
    uri = put(tmp_path, "a", content(0, 80))
    killed_while_it_fetches(tmp_path, far, uri, 100)()
    left = copies_of(tmp_path / "cache")
    assert len(left) == 1 and all(name.endswith(FETCHING) for name in left)
    assert 0 < sum(left.values()) < 80
    assert get(cache(tmp_path, 100), uri) == content(0, 80)
    assert list(copies_of(tmp_path / "cache").values()) == [80]


def test_half_a_file_makes_room_for_others(tmp_path: Path, far: FarStore) -> None:
    killed_while_it_fetches(tmp_path, far, put(tmp_path, "a", content(0, 80)), 100)()
    other = put(tmp_path, "b", content(1, 90))
    with cache(tmp_path, 100).open(other) as path:
        assert path != other
    assert list(copies_of(tmp_path / "cache").values()) == [90]


def test_who_waits_for_a_process_that_is_killed_fetches_himself(tmp_path: Path, far: FarStore) -> None:
    uri = put(tmp_path, "a", content(0, 80))
    kill = killed_while_it_fetches(tmp_path, far, uri, 100)
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.append(get(cache(tmp_path, 100), uri)))
    waiting.start()
    time.sleep(0.3)
    assert not found
    kill()
    waiting.join(20)
    assert found == [content(0, 80)]


def test_a_folder_of_another_user_is_refused_unless_it_was_named(tmp_path: Path, far: FarStore, monkeypatch) -> None:
    uri = put(tmp_path, "a", content(0, 10))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    own = LocalCache(CacheConfig())
    assert get(own, uri) == content(0, 10)
    assert own.folder == str(tmp_path / f"vokenray-cache-{os.getuid()}")
    assert oct(os.stat(own.folder).st_mode & 0o777) == "0o700"
    folder, uid = own.folder, os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    stranger = LocalCache(CacheConfig())
    os.rename(folder, stranger.folder)
    with pytest.raises(InputError, match="belongs to another user"):
        get(stranger, put(tmp_path, "b", b"b"))
    assert get(LocalCache(CacheConfig(folder=stranger.folder)), uri) == content(0, 10)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, far: FarStore) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(InputError, match=r"cache.*cannot be used.*cache.folder"):
        get(cache(tmp_path, 100), put(tmp_path, "a", b"a"))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_cannot_be_meant_is_refused(limit: float) -> None:
    with pytest.raises(InputError, match=re.escape("cache.limit_gb")):
        CacheConfig(limit_gb=limit)
