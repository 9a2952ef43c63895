"""The doctor: what this machine has, what each profile needs, and whether the two fit; in seconds.

`make doctor` starts no kernel of a study and downloads nothing. Exit code 0 when `mini` can run.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from packaging.version import Version

from nanosd_lib import paths
from nanosd_lib.engine import kernels
from nanosd_lib.runs import layout, profiles, registry

# versions known to break, found by trying
BROKEN = (
    ("scipy", ">=", "1.18", "clean-fid 0.1.35 breaks on it"),
    ("torch", "==", "2.13.0", "its CPU build crashes in distillation with channels_last features"),
)
# gigabytes of memory, of disk, of GPU memory: measured for smoke, mini and full, planned for sd15
NEEDS = {
    "smoke": (3, 1, 0),
    "mini": (4, 2, 0),
    "full": (4, 3, 0),
    "sd15": (32, 60, 40),
}
# published networks that judge, and where their packages keep them (a bare name: torch's hub)
JUDGES = {
    "inception-2015": "/tmp/inception-2015-12-05.pt",
    "lpips-vgg": "vgg16-397923af.pth",
    "lpips-alex": "alexnet-owt-7be5be79.pth",
}
_CLEAN_FID = "from cleanfid.features import build_feature_extractor as b; b('clean', 'cpu', False)"
FETCH = {
    "inception-2015": _CLEAN_FID,
    "lpips-vgg": "import lpips; lpips.LPIPS(net='vgg')",
    "lpips-alex": "import lpips; lpips.LPIPS(net='alex')",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: ok, note (only some profiles mind), or bad (nothing will run)."""

    what: str
    state: str
    says: str


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding("python", "ok" if fits else "bad", f"{found} (3.11 or 3.12 is wanted)")


def memory() -> Finding:
    m = psutil.virtual_memory()
    says = f"{m.available / 2**30:.1f} of {m.total / 2**30:.1f} GB free, {os.cpu_count()} cores"
    return Finding("memory", "ok" if m.available > 3 * 2**30 else "bad", says)


def disk() -> Finding:
    free = shutil.disk_usage(_existing(paths.results_root())).free / 1e9
    says = f"{free:.1f} GB free for {paths.shown(paths.results_root())}"
    return Finding("disk", "ok" if free > 2 else "bad", says)


def writing() -> Finding:
    folder = _existing(paths.results_root())
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as handle:
            handle.write(b"x")
            os.fsync(handle.fileno())
    except OSError as error:
        fix = "change its owner, or set NANOSD_RESULTS to a folder of yours"
        return Finding("write access", "bad", f"{paths.shown(folder)}: {error.strerror}; {fix}")
    return Finding("write access", "ok", paths.shown(folder))


def gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "note", "none that torch can use: smoke and mini need none")
    return Finding("GPU", "ok", f"{torch.cuda.get_device_name()}, {_gpu_gb():.0f} GB")


def _gpu_gb() -> float:
    import torch

    found = torch.cuda.is_available()
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if found else 0.0


def versions() -> list[Finding]:
    """Packages at versions known to break; one finding for each, or one that says there is none."""
    found = []
    for package, how, limit, why in BROKEN:
        try:
            have = Version(Version(version(package)).public)  # 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            fix = "run `make env`"
            found.append(Finding(package, "bad", f"not installed: {fix}"))
            continue
        broken = have >= Version(limit) if how == ">=" else have == Version(limit)
        if broken:
            found.append(Finding(package, "bad", f"{have}: {why}; run `make env`"))
    return found or [Finding("versions", "ok", "none that is known to break")]


def kernel() -> Finding:
    name = kernels.kernel_name()
    if name == "nanosd":
        return Finding("kernel", "ok", "`nanosd`, of this very Python")
    return Finding(
        "kernel", "note", "`nanosd` is not registered here, `python3` stands in: `make env`"
    )


def teacher() -> Finding:
    try:
        layout.check_teacher("data/sd-mini")
    except FileNotFoundError as error:
        return Finding("sd-mini", "bad", str(error))
    return Finding("sd-mini", "ok", "data/sd-mini is whole")


def weights() -> Finding:
    """Published weights in the hub's cache, without asking the network."""
    entry = registry.entry("sd15")
    missing = registry.absent(entry)
    if not missing:
        return Finding("weights", "ok", f"{entry.key} is cached")
    offline = " and HF_HUB_OFFLINE is set" if registry.constants.HF_HUB_OFFLINE else ""
    says = f"{entry.key}: {len(missing)} of {len(entry.files)} files are not cached{offline}"
    return Finding("weights", "note", says + " (only sd15 needs them)")


def judges() -> Finding:
    """The published networks that judge at SD 1.5's scale, which nothing here downloads."""
    import torch

    hub = Path(torch.hub.get_dir()) / "checkpoints"
    places = {name: Path(file) if "/" in file else hub / file for name, file in JUDGES.items()}
    missing = {name: place for name, place in places.items() if not place.exists()}
    if not missing:
        return Finding("judges", "ok", f"{', '.join(JUDGES)} are cached")
    first, place = next(iter(missing.items()))
    says = f"{', '.join(missing)} not cached (only sd15 needs them); {first} belongs at {place}:"
    return Finding("judges", "note", f'{says} `.venv/bin/python -c "{FETCH[first]}"` fetches it')


CHECKS: tuple[Callable[[], Finding], ...] = (
    python, memory, disk, writing, gpu, kernel, teacher, weights, judges,
)  # fmt: skip


def examine() -> list[Finding]:
    """Every finding; a check that itself fails is a finding too."""
    found = []
    for check in CHECKS:
        try:
            found.append(check())
        except Exception as error:
            found.append(Finding(check.__name__, "bad", f"{type(error).__name__}: {error}"))
    return found + versions()


def verdict(name: str, findings: list[Finding]) -> str:
    """'' where the profile can run here, else what is missing."""
    ram, space, vram = NEEDS[name]
    profile = profiles.load(name)
    reasons = [f.what for f in findings if f.state == "bad"]
    if psutil.virtual_memory().total / 2**30 < ram:
        reasons.append(f"{ram} GB of memory")
    if shutil.disk_usage(_existing(paths.results_root())).free / 1e9 < space:
        reasons.append(f"{space} GB of disk")
    if profile.device == "cuda" and _gpu_gb() < vram:
        reasons.append(f"a GPU of {vram} GB")
    if not profile.teacher.local and any(f.what == "judges" and f.state != "ok" for f in findings):
        reasons.append("its judges")
    if not profile.teacher.local and registry.absent(registry.entry(profile.teacher.path)):
        if registry.constants.HF_HUB_OFFLINE:
            reasons.append("its weights (offline)")
    return ", ".join(reasons)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def main(argv: list[str] | None = None) -> int:
    """Print every finding, which profiles can run, and at last one word, "ready", or what `mini`
    lacks (1 is then returned). Takes no words.
    """
    findings = examine()
    for f in findings:
        print(f"{f.state:>5}  {f.what:<13} {f.says}")
    print()
    for name in profiles.NAMES:
        missing, (ram, space, vram) = verdict(name, findings), NEEDS[name]
        needs = f"{ram} GB memory, {space} GB disk" + (f", {vram} GB GPU" if vram else "")
        print(f"{name:>6}: {'can run here' if not missing else 'cannot: ' + missing}  ({needs})")
    missing = verdict("mini", findings)
    print(f"\n{'ready' if not missing else 'not ready: ' + missing}")
    return 1 if missing else 0
