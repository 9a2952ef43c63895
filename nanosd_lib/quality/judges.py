"""The judges of sd-mini: a contrastive image-text encoder and an attribute classifier, both trained
on renders.

Not in the paper: `mini-clip` stands in for CLIP and Inception features where those are not cached;
the classifier says whether a picture shows the shape and the colour that its prompt names.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from nanosd_lib.data import miniworld, photographs
from nanosd_lib.networks import precision
from nanosd_lib.paths import ROOT

TOKENS = 24
WORD_END = "</w>"
ANSWERS = {  # shape of the attribute classifier's logits, behind the batch
    "shape": (3, len(miniworld.SHAPES) + 1),
    "colour": (3, len(miniworld.COLOURS)),
    "texture": (3, len(miniworld.TEXTURES)),
    "ground": (len(miniworld.GROUNDS),),
    "light": (len(miniworld.LIGHTS),),
}
TEXT = dict(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=TOKENS,
    projection_dim=64,
)
VISION = dict(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=miniworld.SIZE,
    patch_size=8,
    projection_dim=64,
)


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over miniworld's words: byte-pair merges that make every word one token,
    and any other word its letters. The same ids in every process (the trainer of `tokenizers` draws
    the order of its alphabet anew each time).
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    merges = _merges(photographs.vocabulary())
    pieces = [start, end, *letters, *(f"{c}{WORD_END}" for c in letters), *map("".join, merges)]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=TOKENS,
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) until every word is one piece: the most frequent
    pair first, in order of the alphabet where several are.
    """
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for s in spelled for pair in pairwise(s)):
        first = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(first)
        spelled = [_merged(s, first) for s in spelled]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


@precision.single()
def clip(words: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP (Radford et al. 2021) with a 64-wide text tower and a ViT on 8x8 patches of
    64x64 pictures.
    """
    ids = dict(
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(**TEXT, **ids).to_dict(),
            vision_config=CLIPVisionConfig(**VISION).to_dict(),
            projection_dim=64,
        )
    )


def tokens(words: CLIPTokenizer, text: list[str]) -> Tensor:
    """Token ids (N, 24), padded with the end token as in SD 1.5."""
    return words(
        text, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy between normalised embeddings (N, D); `same` (N, N) marks pairs with
    equal captions.
    """
    image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    logits = scale.exp().clamp(max=100) * image @ text.T
    target = same / same.sum(-1, keepdim=True)
    ce = nn.functional.cross_entropy
    return 0.5 * (ce(logits, target) + ce(logits.T, target))


class AttributeClassifier(ModelMixin, ConfigMixin):
    """Attributes of a picture (N, 3, 64, 64) in [-1, 1]: for each of three slots, from left to
    right, the logits of shape (N, 3, 5; the last: no object), colour (N, 3, 8) and texture (N, 3,
    3); of the scene, ground (N, 5) and light (N, 3).
    """

    @register_to_config
    def __init__(self, width: int = 32):
        super().__init__()
        layers, c = [], 3
        for i, out in enumerate((width, 2 * width, 4 * width, 4 * width)):
            layers += [
                nn.Conv2d(c, out, 3, stride=2 if i else 1, padding=1),
                nn.GroupNorm(8, out),
                nn.SiLU(),
            ]
            c = out
        self.body = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((4, 8))  # rows, columns: slots are told apart by columns
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(32 * c, 192), nn.SiLU())
        self.heads = nn.ModuleDict({k: nn.Linear(192, math.prod(v)) for k, v in ANSWERS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.neck(self.pool(self.body(x)))
        return {k: head(h).unflatten(-1, ANSWERS[k]) for k, head in self.heads.items()}


def attributes(scenes: miniworld.Scenes) -> dict[str, Tensor]:
    """What `AttributeClassifier` should answer: class indices, -100 where there is no object."""
    used = scenes.shape >= 0
    return {
        "shape": scenes.shape.where(used, torch.tensor(len(miniworld.SHAPES))),
        "colour": scenes.colour.where(used, torch.tensor(-100)),
        "texture": scenes.texture.where(used, torch.tensor(-100)),
        "ground": scenes.ground,
        "light": scenes.light,
    }


@torch.no_grad()
def answers(net: AttributeClassifier, pictures: Tensor, batch: int = 128) -> Tensor:
    """The classifier's logits (N, D) on pictures of any size, all attributes in a row."""
    small = (nn.functional.interpolate(x, (64, 64), mode="area") for x in pictures.split(batch))
    return torch.cat([torch.cat([v.flatten(1) for v in net(x).values()], 1) for x in small])


def recognised(answered: Tensor, scenes: miniworld.Scenes) -> dict[str, Tensor]:
    """In which pictures (N,) the classifier read what the scene says, by its `answers`: shape,
    colour and texture of every object (and no further object), `both` shape and colour of every
    object, ground, light.
    """
    parts = answered.split([math.prod(v) for v in ANSWERS.values()], 1)
    told = {
        k: x.unflatten(1, shape).argmax(-1)
        for (k, shape), x in zip(ANSWERS.items(), parts, strict=True)
    }
    right = {k: (told[k] == want) | (want == -100) for k, want in attributes(scenes).items()}
    whole = {k: (v if v.ndim == 1 else v.all(-1)) for k, v in right.items()}
    return whole | {"both": whole["shape"] & whole["colour"]}


@precision.single()
def classifier() -> AttributeClassifier:
    """The attribute classifier that `make teacher` trains on renders alone."""
    folder = ROOT / "data" / "mini-attributes"
    return (
        AttributeClassifier.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
