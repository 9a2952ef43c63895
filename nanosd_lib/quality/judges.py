"""The judges of sd-mini: a contrastive image-text encoder and an attribute classifier, both trained
on renders.

Not in the paper: `mini-clip` stands in for CLIP and Inception features where those are not cached;
the classifier says whether a picture shows the shape and the colour that its prompt names.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from nanosd_lib.data import miniworld, photographs
from nanosd_lib.networks import precision
from nanosd_lib.paths import ROOT

TOKENS = 24
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
    """CLIP's tokenizer over miniworld's words: byte-pair merges that make every word one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    start, end = "<|startoftext|>", "<|endoftext|>"
    words = photographs.vocabulary()
    bpe = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=0,
        special_tokens=[start, end],
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
    )
    bpe.train_from_iterator([" ".join(words + letters)] * 4, trainer)
    import json

    state = json.loads(bpe.to_str())["model"]
    vocab = dict(state["vocab"])
    for letter in letters:  # so that an unknown word splits into letters instead of failing
        for piece in (letter, letter + "</w>"):
            vocab.setdefault(piece, len(vocab))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=TOKENS,
    )


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
    """Shape (N, 4) and colour (N, 8) logits of a one-object picture (N, 3, 64, 64) in [-1, 1]."""

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
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(16 * c, 128), nn.SiLU())
        self.shape = nn.Linear(128, len(miniworld.SHAPES))
        self.colour = nn.Linear(128, len(miniworld.COLOURS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.neck(self.pool(self.body(x)))
        return self.shape(h), self.colour(h)


@torch.no_grad()
def recognised(
    net: AttributeClassifier, pictures: Tensor, scenes: miniworld.Scenes, batch: int = 128
) -> dict[str, float]:
    """Share of one-object pictures whose shape, colour, and both the classifier recognises as the
    scene says.
    """
    small = (nn.functional.interpolate(x, (64, 64), mode="area") for x in pictures.split(batch))
    logits = [net(x) for x in small]
    shape, colour = (torch.cat([part[k] for part in logits]).argmax(-1) for k in (0, 1))
    s, c = shape == scenes.shape[:, 0], colour == scenes.colour[:, 0]
    return {
        "shape": s.float().mean().item(),
        "colour": c.float().mean().item(),
        "both": (s & c).float().mean().item(),
    }


@precision.single()
def classifier() -> AttributeClassifier:
    """The attribute classifier that `make teacher` trains on renders alone."""
    folder = ROOT / "data" / "mini-attributes"
    return (
        AttributeClassifier.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
