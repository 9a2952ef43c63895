"""paths: files are written whole, and what is no plain file stays what it is."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading

import pytest

from nanosd_lib import cli, paths


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file", tmp_path / "link"
    (tmp_path / "middle").symlink_to(target)
    link.symlink_to("middle")
    for text in (b"new", b"newer"):  # at first the link leads to nothing
        paths.write_atomic(link, text)
        assert link.is_symlink() and target.read_bytes() == text and not target.is_symlink()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "file", "link", "middle"]


def test_a_link_to_itself_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        paths.write_atomic(tmp_path / "loop", b"x")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    paths.write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b"new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    paths.write_atomic(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@pytest.fixture
def null(tmp_path):
    """A copy of /dev/null."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"x")
    except OSError as problem:
        pytest.skip(f"no device can be made here: {problem}")
    return path


def test_a_device_stays_a_device(tmp_path, null):
    (tmp_path / "link").symlink_to("null")
    for path in (null, tmp_path / "link"):
        paths.write_atomic(path, b"gone")
    assert stat.S_ISCHR(null.stat().st_mode) and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_stays_a_pipe(tmp_path):
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    paths.write_atomic(pipe, b"said")
    reader.join(30)
    assert heard == [b"said"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no list of open files here")
@pytest.mark.parametrize("named", [True, False])
def test_an_open_file_is_written_and_not_replaced(tmp_path, named):
    """What `> page` makes of /dev/stdout: whoever holds it open would look at the old one for ever;
    and its name may lead nowhere.
    """
    (tmp_path / "link").symlink_to("/dev/fd")
    with (tmp_path / "file").open("w+b") as handle:
        if not named:
            (tmp_path / "file").unlink()
        paths.write_atomic(tmp_path / "link" / str(handle.fileno()), b"new")
        assert handle.read() == b"new" and len(list(tmp_path.iterdir())) == 1 + named


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_replaced_is_written(tmp_path, monkeypatch, number):
    """One that a container mounts by itself, or in a folder that is not ours."""

    def refuse(old, new):
        raise OSError(number, os.strerror(number), str(new))

    monkeypatch.setattr(paths.os, "replace", refuse)
    (tmp_path / "file").write_bytes(b"the old text")
    paths.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    with pytest.raises(OSError, match="absent"):
        paths.write_atomic(tmp_path / "absent", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        paths.write_atomic(tmp_path / "folder", b"x")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder"]


ROOTS = {
    "NANOSD_RESULTS": paths.results_root,
    "NANOSD_STORE": paths.store_root,
    "NANOSD_DEVICE": paths.device_root,
}


@pytest.mark.parametrize("name", ROOTS)
def test_a_folder_is_read_as_a_shell_reads_it(monkeypatch, tmp_path, name):
    """No shell has read what stands in a Dockerfile, a .env file or quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in ("~/x", "$HOME/x", "${HOME}/x", "x", f"{tmp_path}/x"):
        monkeypatch.setenv(name, text)
        assert ROOTS[name]() == (tmp_path / "x").resolve(), text
    for text in ("./~/x", "a~", "a$b"):
        monkeypatch.setenv(name, text)
        assert ROOTS[name]() == (tmp_path / text).resolve(), text
    for text in ("~nobody-of-that-name/x", "$NO_SUCH_NAME/x", "${NO_SUCH_NAME}/x"):
        monkeypatch.setenv(name, text)
        with pytest.raises(ValueError, match=f"^{name}='[^\n]*' is refused.*write the folder out$"):
            ROOTS[name]()
    for other in ROOTS:
        monkeypatch.setenv(other, "")
    assert ROOTS[name]().is_relative_to(paths.ROOT / "results")


@pytest.mark.parametrize("verb", ["run", "doctor", "dryrun", "hardware"])
def test_every_verb_refuses_an_unknown_folder_at_once(monkeypatch, capsys, verb):
    monkeypatch.setenv("NANOSD_DEVICE", "~nobody-of-that-name/x")
    with pytest.raises(SystemExit) as ended:
        cli.app([verb], standalone_mode=False)
    assert ended.value.code == 2
    assert re.fullmatch(r"error: NANOSD_DEVICE=.* is refused.*\n", capsys.readouterr().err)
