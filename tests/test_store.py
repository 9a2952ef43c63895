"""store: what is whole is loaded, what is not is computed again, and nothing in between is used."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import save

import nanosd_lib
from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import artifacts, cache, layout, notebook, provenance
from nanosd_lib.studies import jobs, sweep

TOY = """
import time
import pandas as pd
import torch
import yaml
from PIL import Image

from nanosd_lib import toyhelp

CALLS = []


def everything(n, lamp=None):
    CALLS.append(n)
    return {
        "table": pd.DataFrame({"n": range(n)}),
        "weights": {"a": torch.arange(n), "b": torch.rand(n)},
        "picture": Image.new("RGB", (n, n), "red"),
        "fact": {"n": n, "f": [0.5, None, "x"]},
    }


def bad(n):
    return {"thing": object()}


def waits(s, lamp=None):
    time.sleep(s)
    return {"fact": s}


def resumes(n, scratch):
    done = len(list(scratch.iterdir()))
    for i in range(done, n):
        (scratch / str(i)).write_text("")
        time.sleep(0.05)
    return {"resumed_at": done}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module nanosd_lib.toy (and one it imports) that lives in a temporary folder."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "toy.py").write_text(TOY)
    (package / "toyhelp.py").write_text("X = 1\n")
    monkeypatch.setattr(nanosd_lib, "__path__", [*nanosd_lib.__path__, str(package)])
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    import nanosd_lib.toy as module

    yield module
    for name in ("toy", "toyhelp"):
        sys.modules.pop(f"nanosd_lib.{name}", None)
        provenance.AT_START.pop(f"nanosd_lib.{name}", None)
        vars(nanosd_lib).pop(name, None)


@pytest.fixture
def teacher(tmp_path):
    """The smallest folder that passes for a teacher; returns the overrides that name it."""
    folder = tmp_path / "teacher"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "w.safetensors").write_bytes(save({"w": np.ones(2)}))
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return {"teacher.path": str(folder), "device": "cpu"}


@pytest.fixture
def run(toy, teacher):
    return notebook.open_run("02_toy", "smoke", 0, teacher)


def test_a_stage_is_computed_once_and_reads_back_equal(run, toy, capsys):
    first = run.cached("toy", toy.everything, {"n": 3})
    assert "cached toy: computed in" in capsys.readouterr().out
    second = run.cached("toy", toy.everything, {"n": 3})
    assert capsys.readouterr().out == "cached toy: loaded (0.0 MB)\n"
    assert toy.CALLS == [3] and first.key == second.key
    assert second.names == ("fact", "picture", "table", "weights")
    assert second["fact"] == first["fact"] == {"n": 3, "f": [0.5, None, "x"]}
    pd.testing.assert_frame_equal(second["table"], pd.DataFrame({"n": range(3)}))
    assert torch.equal(second["weights"]["b"], first["weights"]["b"])
    assert second["picture"].getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(KeyError, match="it has fact, picture"):
        second["tabel"]


def test_seconds_are_counted_once(run, toy, teacher):
    """Of one computation inside another, and of one that a page computes and asks for again."""

    def saved(of):
        return json.loads((of.folder / "saved" / f"{of.notebook}.json").read_text())["seconds"]

    inner = cache.Later(lambda: run.cached("inner", toy.waits, {"s": 0.6}, [], quiet=True))
    outer = run.cached("outer", toy.waits, {"s": 0.2}, [], quiet=True, lamp=inner)
    assert 0.2 <= outer.manifest["seconds"] < 0.5  # its own alone
    assert 0.6 <= inner.value().manifest["seconds"]
    run.cached("outer", toy.waits, {"s": 0.2}, [], quiet=True, lamp=inner)
    assert saved(run) == 0  # this run's clock has them
    again = notebook.open_run(run.notebook, "smoke", 0, teacher)
    again.cached("outer", toy.waits, {"s": 0.2}, [], quiet=True, lamp=inner)
    assert 0.2 <= saved(again) < 0.5


def test_the_key_follows_params_inputs_and_source(run, toy, monkeypatch):
    def key(params=None, inputs=()):
        return run.cached("toy", toy.everything, params or {"n": 2}, inputs).key

    one = run.cached("toy", toy.everything, {"n": 1})
    keys = [key(), key({"n": 3}), key(inputs=("hash",)), key(inputs=(one,))]
    (run.folder.parents[1] / "package" / "toyhelp.py").write_text("X = 2\n")
    with pytest.raises(RuntimeError, match="toyhelp was edited after this kernel started"):
        key()
    monkeypatch.delitem(provenance.AT_START, "nanosd_lib.toyhelp")
    keys.append(key())
    monkeypatch.setattr("nanosd_lib.runs.cache.lock_hash", lambda: "another lock")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_the_key_follows_the_data_that_code_reads_by_itself(run, toy, monkeypatch, tmp_path):
    """Other judges, other photographs: what was computed with the old ones is not loaded."""
    (tmp_path / "data" / "judge").mkdir(parents=True)
    weights = tmp_path / "data" / "judge" / "model.safetensors"
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    key = lambda: run.cached("toy", toy.everything, {"n": 2}).key  # noqa: E731
    plain = key()
    monkeypatch.setitem(provenance.READS, "nanosd_lib.toyhelp", ("judge",))
    keys = [plain, key()]  # not there
    for content in (b"one", b"two!", b"one"):
        weights.write_bytes(content)
        keys.append(key())
    assert keys[2] == keys[4] and len(set(keys)) == 4


def test_what_reads_data_by_itself_is_listed():
    """A module that names a folder of data/ with its own weights or pictures stands in READS."""
    root = ROOT / "nanosd_lib"
    for module, folders in provenance.READS.items():
        text = (root / f"{module.split('.', 1)[1].replace('.', '/')}.py").read_text()
        assert all(
            f'"{folder}"' in text and (ROOT / "data" / folder).is_dir() for folder in folders
        )
    named = {
        folder
        for path in root.rglob("*.py")
        if path.parent.name in ("networks", "data", "quality", "learning", "search")
        for folder in ("mini-clip", "mini-attributes", "photographs")
        if f'ROOT / "data" / "{folder}"' in path.read_text()
        and folder not in provenance.READS.get(f"nanosd_lib.{path.parent.name}.{path.stem}", ())
    }
    assert named == set()


def test_the_thread_count_is_not_part_of_the_key(run, toy):
    first = run.cached("toy", toy.everything, {"n": 2}).key
    torch.set_num_threads(run.profile.threads + 1)
    assert run.cached("toy", toy.everything, {"n": 2}).key == first


def test_random_numbers_do_not_depend_on_what_ran_before(run, toy):
    torch.manual_seed(1)
    first = run.cached("toy", toy.everything, {"n": 4})
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after  # the stage left the generator where it was
    artifacts.shutil.rmtree(first.path)
    again = run.cached("toy", toy.everything, {"n": 4})
    assert torch.equal(first["weights"]["b"], again["weights"]["b"])


def test_functions_outside_the_library_are_refused(run, toy):
    def local():
        return {}

    for fn in (local, lambda: {}, os.getcwd):
        with pytest.raises(ValueError, match="must stand in a module of nanosd_lib"):
            run.cached("toy", fn, {})
    foreign = lambda: 0  # noqa: E731
    foreign.__module__ = "__main__"
    with pytest.raises(ValueError, match="must stand in a module of nanosd_lib"):
        run.cached("toy", toy.everything, {"n": 1}, lamp=foreign)


def test_values_and_names_that_cannot_be_kept_are_named(run, toy):
    with pytest.raises(TypeError, match=r"value 'thing' \(object\)"):
        run.cached("toy", toy.bad, {"n": 1})
    with pytest.raises(TypeError, match="Tensor is not plain data; hand it over as context"):
        run.cached("toy", toy.everything, {"n": torch.ones(1)})
    for name in ("../toy", "", ".toy", "a/b"):
        with pytest.raises(ValueError, match="is refused"):
            run.cached(name, toy.everything, {"n": 1})
    assert not list(run.store.glob(".tmp*"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FILES = ("table.parquet", "weights.safetensors", "picture.png", "fact.json", "manifest.json")


@pytest.mark.parametrize("harm", [truncate, flip, os.remove])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_artifact_is_named_and_computed_again(run, toy, capsys, harm, file):
    good = run.cached("toy", toy.everything, {"n": 3})
    harm(good.path / file)
    capsys.readouterr()
    again = run.cached("toy", toy.everything, {"n": 3})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "is damaged" in lines[0] and file in lines[0]
    assert toy.CALLS == [3, 3] and again["fact"] == {"n": 3, "f": [0.5, None, "x"]}


def test_an_artifact_that_is_already_there_is_kept(run, toy, tmp_path):
    folder = tmp_path / "a"
    first = artifacts.write(folder, "k", {"x": 1}, {})
    second = artifacts.write(folder, "k", {"x": 2}, {})
    assert first["x"] == second["x"] == 1
    assert [p.name for p in tmp_path.glob(".tmp*")] == []


def test_a_failure_at_any_write_leaves_nothing(run, toy, monkeypatch):
    real, left = os.fsync, [0]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(artifacts.os, "fsync", full)
    for n in range(6):  # four values, the manifest, the folder
        left[0] = n
        with pytest.raises(OSError, match="No space"):
            run.cached("toy", toy.everything, {"n": 3})
        assert not [p for p in run.store.iterdir() if p.name not in (".locks", ".scratch")]


CHILD = """
import sys
import nanosd_lib
nanosd_lib.__path__ = [*nanosd_lib.__path__, {package!r}]
from nanosd_lib import toy
from nanosd_lib.runs import notebook as store
run = store.open_run("02_toy", "smoke", 0, {overrides!r})
print(run.cached("slow", toy.resumes, {{"n": 20}})["resumed_at"], flush=True)
"""


def child(teacher):
    code = CHILD.format(package=list(nanosd_lib.__path__)[-1], overrides=teacher)
    env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_a_killed_stage_goes_on_from_its_scratch_folder(run, toy, teacher):
    first = child(teacher)
    deadline = time.time() + 120
    while len(list((run.store / ".scratch").glob("slow-*/*"))) < 3:
        assert time.time() < deadline and first.poll() is None
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(run.store.glob("slow-*"))
    assert run.cached("slow", toy.resumes, {"n": 20})["resumed_at"] >= 3
    assert not list((run.store / ".scratch").iterdir())


def test_two_processes_share_one_computation(run, toy, teacher):
    both = [child(teacher), child(teacher)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("computed" in text for text in said) == 1
    assert sum("loaded" in text for text in said) == 1
    assert all(text.splitlines()[-1] == "0" for text in said)


def test_leftovers_of_dead_processes_are_swept(run, teacher):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = artifacts.socket.gethostname()
    gone, mine = (run.store / f".tmp-{host}-{pid}-0a" for pid in (dead.pid, os.getpid()))
    gone.mkdir()
    mine.mkdir()
    notebook.open_run("02_toy", "smoke", 0, teacher)
    assert not gone.exists() and mine.exists()


WRITER = """
import sys, time
from pathlib import Path
from nanosd_lib.runs import artifacts
real = artifacts._sync
def slow(path):
    print(path.parent, flush=True)
    sys.stdin.readline()
    real(path)
artifacts._sync = slow
artifacts.write(Path(sys.argv[1]) / "a", "k", {"x": 1}, {})
"""


@pytest.fixture
def writer(tmp_path):
    """A process that stands still in the middle of writing an artifact, and its folder."""
    env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=env, **pipes)
    yield process, paths.Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_a_writer_of_another_container_is_left_alone(writer, tmp_path, monkeypatch):
    """Its pid does not exist here."""
    process, folder = writer
    monkeypatch.setattr(artifacts.psutil, "pid_exists", lambda pid: False)
    artifacts.sweep(tmp_path)
    assert folder.exists()
    process.communicate("\n\n\n", timeout=60)
    assert process.returncode == 0 and artifacts.read(tmp_path / "a", "k")["x"] == 1


def test_a_killed_writer_of_another_container_is_swept(writer, tmp_path, monkeypatch):
    process, folder = writer
    monkeypatch.setattr(artifacts.psutil, "pid_exists", lambda pid: False)
    process.kill()
    process.wait()
    artifacts.sweep(tmp_path)
    assert not folder.exists()


def test_where_nothing_can_be_locked_age_decides(writer, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(37, "No locks available")

    _, folder = writer
    monkeypatch.setattr(artifacts.psutil, "pid_exists", lambda pid: False)
    monkeypatch.setattr("fcntl.flock", refused)
    artifacts.sweep(tmp_path)
    assert folder.exists()
    os.utime(folder, (0, time.time() - 2 * artifacts.DAY))
    artifacts.sweep(tmp_path)
    assert not folder.exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """By a process of another container, in the moment between the two."""
    monkeypatch.setattr(artifacts.psutil, "pid_exists", lambda pid: False)
    real, seen = artifacts._claimed, []

    def claimed(path):
        seen.append(path)
        if len(seen) == 1:
            artifacts.sweep(tmp_path)
        return real(path)

    monkeypatch.setattr(artifacts, "_claimed", claimed)
    assert artifacts.write(tmp_path / "a", "k", {"x": 1}, {})["x"] == 1 and len(seen) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_opening_a_run_checks_everything(toy, teacher):
    for seed in (-1, 2**31, True, "0", 1.0, None):
        with pytest.raises(ValueError, match="an integer from 0 to 2147483647"):
            notebook.open_run("02_toy", "smoke", seed, teacher)
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        notebook.open_run("02_toy", "smok", 0, teacher)
    with pytest.raises(ValueError, match="is refused"):
        notebook.open_run("../02_toy", "smoke", 0, teacher)
    with pytest.raises(FileNotFoundError, match="nowhere is missing.*make teacher") as error:
        notebook.open_run("02_toy", "smoke", 0, {"teacher.path": "data/nowhere"})
    assert "git checkout data/sd-mini" in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_with_a_part_missing_is_refused(teacher, tmp_path):
    (tmp_path / "teacher" / "unet" / "w.safetensors").unlink()
    (tmp_path / "teacher" / "unet").rmdir()
    with pytest.raises(FileNotFoundError, match="teacher/unet is missing"):
        layout.check_run("smoke", 0, teacher)


def test_folders_and_seeds(toy, teacher, tmp_path):
    one = notebook.open_run("02_toy", "smoke", 0, teacher)
    drawn = torch.rand(1)
    two = notebook.open_run("02_toy", "smoke", 3, {**teacher, "fwkd.steps": 2})
    assert one.folder.name[:6] == "smoke-" and len(one.folder.name) == 6 + 8
    assert two.folder.name[:12] == "smoke-seed3-" and one.folder.parent == tmp_path / "results"
    assert layout.results_folder("mini", 0).name == "mini"
    assert layout.results_folder("mini", 2, {}).name == "mini-seed2"
    notebook.open_run("02_toy", "smoke", 0, teacher)
    assert torch.rand(1) == drawn and torch.get_num_threads() == one.profile.threads


def test_the_teachers_key_is_the_hash_of_its_files(run, tmp_path, teacher):
    (tmp_path / "teacher" / ".hidden").write_text("x")
    other = notebook.open_run("02_toy", "smoke", 0, teacher)
    assert other.teacher_key == run.teacher_key == notebook.teacher_hash(run.teacher)
    (tmp_path / "teacher" / "unet" / "w.safetensors").write_bytes(save({"w": np.zeros(2)}))
    assert notebook.teacher_hash(run.teacher) != run.teacher_key


def test_tables_figures_and_records(run, teacher):
    table = pd.DataFrame({"a": [1 / 3, 2.0], "b": ["x", "y"]})
    assert run.table("toy", table) is table
    assert (run.folder / "tables/toy.csv").read_text() == "a,b\n0.333333,x\n2,y\n"
    assert list(run.read_table("toy", from_notebook="02").columns) == ["a", "b"]
    with pytest.raises(FileNotFoundError) as error:
        run.read_table("stages", from_notebook="02")
    assert str(error.value) == (
        "tables/stages.csv is missing: run notebook 02 first (make run NB=02 PROFILE=smoke)"
    )
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    assert run.figure("toy", figure) is figure
    first = (run.folder / "figures/toy.png").read_bytes()
    run.figure("toy", figure)
    assert first == (run.folder / "figures/toy.png").read_bytes() and b"Software" not in first
    assert Image.open(run.folder / "figures/toy.png").info["dpi"][0] == pytest.approx(110, 0.01)
    plt.close(figure)


def test_a_figure_of_the_pages_is_shown_above_its_caption(run, monkeypatch):
    seen: list = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    figure, _ = plt.subplots()
    run.figure("05_pareto", figure)._ipython_display_()
    said = yaml.safe_load((ROOT / "notebooks/captions.yaml").read_text(encoding="utf-8"))
    assert seen[0].data == (run.folder / "figures/05_pareto.png").read_bytes()
    assert seen[0].width == round(90 * figure.get_figwidth())
    assert seen[1].data == f"*Figure.* {said['05_pareto']}"


def test_a_table_is_read_as_it_was_written(run):
    """Words that pandas takes for gaps, and counts beside a gap, which are floats to it."""
    words = ["None", "NA", "nan", "NULL", "n/a", "N/A", "-", "inf", None]
    counts = [859520964, None, -1234567, 0, 2**53 - 1, 1e6, 0.1234567, 1e300, float("inf")]
    table = pd.DataFrame({"word": words, "count": counts, "whole": range(10**9, 10**9 + 9)})
    table["gap"] = table["whole"].astype("Int64").where(table["whole"] % 2 == 0)
    run.table("words", table)
    read = run.read_table("words", from_notebook="02")
    rounded = table.replace({"count": {0.1234567: 0.123457}}).astype({"gap": float})
    pd.testing.assert_frame_equal(read, rounded)
    run.ledger(table[["count"]].head(1))
    assert (run.folder / layout.LEDGER).read_text() == "count\n859520964\n"


def test_records_are_joined_and_replaced_by_notebook(run, teacher):
    run.record("tiles-poster", 1, "exact")
    again = notebook.open_run("02_toy", "smoke", 0, teacher)
    assert set(again.records()) == {"tiles-poster"}
    again.record("params-n1", torch.tensor(3), "exact")
    other = notebook.open_run("03_other", "smoke", 0, teacher)
    other.record("params-n2", 0.5, "128 pairs")
    none = {"low": None, "high": None}
    assert other.records() == {
        "params-n1": {"value": 3.0, "protocol": "exact", "notebook": "02_toy", **none},
        "params-n2": {"value": 0.5, "protocol": "128 pairs", "notebook": "03_other", **none},
    }
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not a measurement"):
            other.record("params-n2", value, "x")
    other.record("params-n1", 4, "x")
    with pytest.raises(ValueError, match="recorded by two notebooks: 02_toy and 03_other"):
        other.records()


def test_a_record_keeps_its_interval_and_what_explains_it(run):
    guard, steps = {"made-worse": (1.0, 1.0, 2.0)}, {"least": "E3"}
    run.record("alignment-improves", (0.7, 0.6, 0.8), "x", n=96, guards=guard, **steps)
    kept = run.records()["alignment-improves"]
    assert (kept["low"], kept["high"], kept["n"], kept["facts"]) == (0.6, 0.8, 96, steps)
    assert kept["guards"] == {"made-worse": [1.0, 1.0, 2.0]}
    run.record("beats-lightweight-baselines", (0.7, float("nan"), float("nan")), "one seed")
    assert run.records()["beats-lightweight-baselines"]["low"] is None
    for value, more, words in (
        ((0.7, 0.8, 0.9), {}, "lies outside its interval"),
        ((0.7, 0.6, 0.8), {"guards": {"speed": 1}}, "no guard 'speed'"),
        ((1.7, 1.6, 1.8), {}, "explanation: 'slower' was not recorded"),
        ((0.7, 0.6, 0.8), {"compiled": True}, "a compiled number for evidence 'trained'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            run.record("beats-lightweight-baselines", value, "x", **more)
        assert "\n" not in str(error.value)


def test_a_record_of_a_claim_that_went_is_left_out(run):
    run.record("tiles-poster", 1, "exact")
    old = run.folder / "records" / "03_older.json"
    old.write_text(json.dumps({"a-claim-that-went": {"value": 1.0, "protocol": "x"}}))
    assert set(run.records()) == {"tiles-poster"}


def test_a_record_of_no_claim_is_refused_at_once(run):
    with pytest.raises(ValueError) as error:
        run.record("param-n1", 1, "exact")
    assert str(error.value) == (
        "claim 'param-n1' is not in data/paper/claims.yaml (did you mean 'params-n1'?)"
    )
    with pytest.raises(ValueError, match="is refused"):
        run.record("../params-n1", 1, "exact")
    assert not list((run.folder / "records").iterdir())


def test_a_file_system_without_locks_is_no_obstacle(run, toy, monkeypatch):
    def refused(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    assert run.cached("toy", toy.everything, {"n": 3})["fact"]["n"] == 3


@pytest.fixture
def as_other(tmp_path):
    """A context in which this process is another user, who may look into `tmp_path`."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")

    @contextlib.contextmanager
    def other():
        os.seteuid(65534)
        try:
            if not os.access(provenance.__file__, os.R_OK, effective_ids=True):
                pytest.skip("another user may not read this clone")
            yield
        finally:
            os.seteuid(0)

    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("pytest-", "popen-")) or folder == tmp_path:
            folder.chmod(0o755)
    before = os.umask(0o022)  # what another user may read: under a stricter one, nothing at all
    yield other
    os.umask(before)


def echo(store):
    return cache.cached(store, torch.device("cpu"), "echo", sweep.echo, {"value": 1}, [], {})


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_damaged_artifact_of_another_user_is_one_line(as_other, tmp_path, capsys, mode):
    store = tmp_path / "store"
    first = echo(store)
    truncate(first.path / "value.json")
    store.chmod(mode)
    with as_other(), pytest.raises(PermissionError) as error:
        echo(store)
    assert "is damaged (value.json does not match" in capsys.readouterr().out
    assert str(error.value) == (
        f"cached echo: {first.path} is closed to this user: ask root for `chmod -R a+rwX {store}`,"
        " or set NANOSD_STORE to a folder of your own"
    )


def test_in_a_common_store_it_is_set_aside(as_other, tmp_path, monkeypatch):
    """Its owner's next run sweeps what is left of it."""
    store = tmp_path / "store"
    truncate(echo(store).path / "value.json")
    store.chmod(0o777)
    with as_other():
        assert echo(store)["value"] == 1 and echo(store)["value"] == 1
    (aside,) = store.glob(".tmp-*")
    monkeypatch.setattr(artifacts.psutil, "pid_exists", lambda pid: False)
    artifacts.sweep(store)
    assert not aside.exists()


@pytest.mark.parametrize(
    "closed, mode", [(".", 0o700), ("manifest.json", 0o600), ("value.json", 0)]
)
def test_an_artifact_that_may_not_be_read_is_one_line(as_other, tmp_path, closed, mode):
    first = echo(tmp_path / "store")
    (first.path / closed).chmod(mode)
    job = jobs.Job("nanosd_lib.studies.sweep:echo", {"value": 1}, str(tmp_path / "store"))
    for call in (lambda: echo(tmp_path / "store"), job.finished):
        with as_other(), pytest.raises(PermissionError) as error:
            call()
        assert str(error.value).startswith(f"cached echo: {first.path}/")
        assert "closed to this user: ask root for `chmod" in str(error.value)


def test_a_store_that_may_not_be_written_is_one_line(as_other, tmp_path):
    (tmp_path / "store").mkdir()
    echo(tmp_path / "elsewhere")  # all is imported
    with as_other(), pytest.raises(PermissionError) as error:
        echo(tmp_path / "store")
    assert "store/.locks is closed to this user: ask root for `chmod" in str(error.value)


def test_the_owner_is_named_even_without_a_name(run, toy, monkeypatch):
    def refused(*args):
        raise PermissionError(13, "Permission denied", str(first.path / "value.json"))

    def nameless(self):
        raise KeyError("getpwuid(): uid not found")

    first = run.cached("toy", toy.everything, {"n": 1})
    monkeypatch.setattr(artifacts, "read", refused)
    monkeypatch.setattr(paths.Path, "owner", nameless)
    with pytest.raises(PermissionError, match=f"ask user {os.getuid()} for .*NANOSD_STORE to"):
        run.cached("toy", toy.everything, {"n": 1})
    monkeypatch.setenv("NANOSD_DEVICE", str(run.store))
    with pytest.raises(PermissionError, match="NANOSD_DEVICE to a folder of your own"):
        run.cached("toy", toy.everything, {"n": 1})


def test_what_a_computation_itself_may_not_read_is_its_own_affair(run, toy, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "/elsewhere/data")

    monkeypatch.setattr(cache, "_call", refused)
    with pytest.raises(PermissionError, match="Permission denied: '/elsewhere/data'"):
        run.cached("toy", toy.everything, {"n": 1})


def test_what_is_made_later_is_made_to_compute_and_not_to_load(toy):
    run, made = notebook.open_run("00_start_here", "smoke"), []
    lamp = cache.Later(lambda: made.append(1) or "lamp")
    first = run.cached("everything", toy.everything, {"n": 3}, lamp=lamp)
    assert made == [1] and toy.CALLS == [3]
    again = run.cached("everything", toy.everything, {"n": 3}, lamp=cache.Later(made.clear))
    assert again.key == first.key and made == [1] and toy.CALLS == [3]
    assert run.cached("everything", toy.everything, {"n": 4}, lamp=lamp) and made == [1]
