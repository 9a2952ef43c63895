"""What looks at pictures: features for Frechet distances, and LPIPS.

Every number names its protocol; the plain names are kept for the published weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from nanosd_lib.networks import pipeline, precision
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.paths import ROOT
from nanosd_lib.quality import judges, metrics

T = TypeVar("T")
UNLIKE = 0.02  # how far features of a picture drawn again may lie from those of before
KEPT = 8  # pictures of a network that are kept to be shown, and drawn again where all were shipped
INCEPTION = Path("/tmp/inception-2015-12-05.pt")  # where clean-fid 0.1.35 keeps its weights


@precision.single()
def extractor(name: str, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """Pictures (N, 3, H, W) in [-1, 1] -> features (N, D), looked at on that device and handed back
    on the CPU: "mini-clip" (D = 64) or "inception-2015" (D = 2048).

    Raises FileNotFoundError where the weights are not on this machine; nothing is downloaded here.
    """
    if name == "mini-clip":
        net = _clip()
        side = net.to(device).config.vision_config.image_size
        small = lambda x: pipeline.sized(x, side).to(device)  # noqa: E731
        return lambda x: net.get_image_features(small(x)).pooler_output.cpu()
    if name == "inception-2015":
        return _inception(torch.device(device))
    raise ValueError(f"features {name!r}: use mini-clip or inception-2015")


def _clip() -> Any:
    folder = ROOT / "data" / "mini-clip"
    if not folder.is_dir():
        raise FileNotFoundError(
            "data/mini-clip is missing: bring it back with `git checkout data/mini-clip`"
        )
    return copy.deepcopy(_read(folder))


@functools.cache  # a page judges some hundred times
def _read(folder: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    """clean-fid's features as clean-fid takes them from files: levels rounded to 8 bits, each
    picture brought to 299x299 by its own resizer, which the network asserts and does not do.
    """
    from cleanfid.features import build_feature_extractor
    from cleanfid.resize import build_resizer

    if not INCEPTION.exists():
        raise FileNotFoundError(
            "features inception-2015: clean-fid's weights are not cached;"
            " run clean-fid once online, or use mini-clip"
        )
    net = build_feature_extractor("clean", device=device, use_dataparallel=False)
    resize = build_resizer("clean")

    def look(x: Tensor) -> Tensor:
        levels = ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        sized = torch.from_numpy(np.stack([resize(picture) for picture in levels]))
        return torch.as_tensor(net(sized.permute(0, 3, 1, 2).to(device))).cpu()

    return look


@torch.no_grad()
def looked_at(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    how: Sampling,
    desc: str = "images",
    keep: int = KEPT,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) of `generate`'s images and the first `keep` of them: no more are held than a
    batch at a time. Where features of the same images are `known`: `witnessed`.
    """

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = pipeline.noise(pipe, n, how.seed)
        look = extractor(how.features, pipe.device)
        seen, kept = [], []
        for i in tqdm(range(0, n, how.batch), desc=desc, leave=False):
            some = slice(i, min(i + how.batch, n))
            made = pipeline.generate(pipe, prompts[some], how, "batch", z[some])
            seen.append(features(look, made))
            kept.append(made[: max(0, keep - i)])
        return torch.cat(seen), torch.cat(kept)

    return witnessed(draw, len(prompts), keep, desc, known)


def witnessed(
    draw: Callable[[int], tuple[Tensor, T]],
    n: int,
    witnesses: int,
    desc: str,
    known: Tensor | None = None,
) -> tuple[Tensor, T]:
    """`draw(n)`: rows (n, D), one for each of the first n pictures (prompts, paths), and what is
    kept beside them.

    Where the rows are `known`, only so many `witnesses` are drawn, and must come out as they did:
    ValueError where one of them does not.
    """
    if known is None:
        return draw(n)
    again, kept = draw(min(witnesses, n))
    alike(again, known[:witnesses], desc)
    return known.double(), kept


def alike(again: Tensor, known: Tensor, desc: str) -> None:
    """ValueError where rows that were made again are not those that were `known`."""
    apart = unlike(again, known)
    if not apart < UNLIKE:
        raise ValueError(
            f"{desc}: pictures drawn again are not those whose features are shipped (they lie"
            f" {apart:.2g} apart, at most {UNLIKE:g} is the arithmetic of another machine)"
        )


def unlike(a: Tensor, b: Tensor) -> float:
    """The largest distance of paired features (N, D), relative to their length; NaN for those that
    are no pairs.
    """
    if a.shape != b.shape:
        return float("nan")
    a, b = a.double(), b.double()
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


@torch.no_grad()
def features(look: Callable[[Tensor], Tensor], pictures: Tensor, batch: int = 128) -> Tensor:
    """Features (N, D) in float64."""
    return torch.cat([look(x) for x in pictures.split(batch)]).double()


@precision.single()
def lpips_over(backbone: str, trained: bool = True) -> nn.Module:
    """LPIPS (Zhang et al. 2018) of the `lpips` package, frozen: pictures (N, 3, H, W) in [-1, 1]
    twice -> (N, 1, 1, 1).

    "mini-attributes", "mini-clip": over the classifier's activations, or the image encoder's
    tokens, without LPIPS's learned weights (the package's own baseline); never the plain name.
    "lpips-vgg", "lpips-alex": the published ones, whose backbone must be cached (FileNotFoundError
    otherwise), or has random weights where `trained` is False.
    """
    import lpips

    if backbone in PUBLISHED:
        net, file = PUBLISHED[backbone]
        if not trained:
            return lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        if not (Path(torch.hub.get_dir()) / "checkpoints" / file).exists():
            raise FileNotFoundError(
                f"perceptual {backbone}: torchvision's weights of its backbone are not cached;"
                " run lpips once online, or use mini-attributes or mini-clip"
            )
        return lpips.LPIPS(net=net, verbose=False).requires_grad_(False)
    if backbone not in OVER:
        raise ValueError(f"perceptual {backbone!r}: use one of {', '.join([*OVER, *PUBLISHED])}")

    class Over(lpips.LPIPS):
        def __init__(self) -> None:
            nn.Module.__init__(self)  # its own would build a backbone that has to be downloaded
            self.net, self.scaling_layer = OVER[backbone](), nn.Identity()
            self.version, self.lpips, self.spatial = "0.1", False, False
            self.L = self.net.layers

    return Over().eval().requires_grad_(False)


@precision.single()
def activations(backbone: str) -> nn.Module:
    """What `lpips_over` that backbone compares: pictures -> maps [(N, C, h, w), ...], frozen."""
    net: Any = lpips_over(backbone).net
    return net.eval().requires_grad_(False)


class _Classifier(nn.Module):
    """Pictures -> the attribute classifier's activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = judges.classifier().body
        self.layers = sum(isinstance(layer, nn.SiLU) for layer in self.body)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.SiLU):
                seen.append(x)
        return seen


class _Encoder(nn.Module):
    """Pictures -> the patches of mini-clip's image encoder after each of its layers, as maps
    (N, D, h, w); pictures of another size than its own are brought to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = _clip().vision_model
        self.layers = self.net.config.num_hidden_layers

    def forward(self, x: Tensor) -> list[Tensor]:
        small = pipeline.sized(x, self.net.config.image_size)
        told = self.net(small, output_hidden_states=True).hidden_states[1:]
        maps = [h[:, 1:].transpose(1, 2) for h in told]  # without the class token
        side = self.net.config.image_size // self.net.config.patch_size
        return [m.unflatten(2, (side, side)) for m in maps]


OVER: dict[str, Callable[[], nn.Module]] = {"mini-attributes": _Classifier, "mini-clip": _Encoder}
PUBLISHED = {
    "lpips-vgg": ("vgg", "vgg16-397923af.pth"),
    "lpips-alex": ("alex", "alexnet-owt-7be5be79.pth"),
}


@functools.lru_cache(maxsize=2)  # read once for all that a page judges
def _judge(backbone: str, device: str) -> nn.Module:
    return lpips_over(backbone).to(device)


@torch.no_grad()
def perceptual(
    a: Tensor, b: Tensor, backbone: str = "mini-attributes", device: str | torch.device = "cpu"
) -> Tensor:
    """`lpips_over` of paired pictures (N, 3, H, W), a few at a time on that device: (N,).

    In [-1, 1]; ValueError, in one line, for other shapes, types and ranges.
    """
    a, b = (x.float() for x in metrics.pairs_of("perceptual", a, b))
    few = max(1, 64 * 64**2 // a[0, 0].numel())
    net, parts = _judge(backbone, str(device)), zip(a.split(few), b.split(few), strict=True)
    return torch.cat([net(x.to(device), y.to(device)).flatten().cpu() for x, y in parts])
