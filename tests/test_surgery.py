"""surgery: the paper's counts, diffusers' own networks, and one interface for 32,768 students."""

from __future__ import annotations

import hashlib
import logging
import random
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from nanosd_lib import paper
from nanosd_lib.learning import fwkd, sd_mini
from nanosd_lib.networks import arch, blocks, counting, pipeline, sd15, surgery, twins
from nanosd_lib.networks.arch import ABLATION, BASE, CHOICES, NANOSD, Arch
from nanosd_lib.quality import judges

NARROW = sd_mini.UNET | dict(
    sample_size=8,
    block_out_channels=(8, 16, 32, 32),
    cross_attention_dim=16,
    norm_num_groups=4,
    attention_head_dim=2,
)
SD2 = dict(use_linear_projection=True, attention_head_dim=(1, 2, 4, 4))
SD15 = NANOSD["SD1.5"]
ALL = [(s, c) for s in CHOICES for c in CHOICES[s]]


def random_unet(config: dict, **changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**(config | changes)).eval()


def inputs(config, batch=2, height=0, width=0, tokens=5):
    g = torch.Generator().manual_seed(1)
    height, width = height or config["sample_size"], width or config["sample_size"]
    return {
        "sample": torch.randn(batch, 4, height, width, generator=g),
        "timestep": torch.tensor([10, 900])[:batch],
        "encoder_hidden_states": torch.randn(
            batch, tokens, config["cross_attention_dim"], generator=g
        ),
    }


def fingerprint(net: torch.nn.Module) -> str:
    state = b"".join(k.encode() + v.numpy().tobytes() for k, v in net.state_dict().items())
    return hashlib.sha256(state).hexdigest()


def stock(a: Arch, teacher, student) -> UNet2DConditionModel:
    """diffusers' own network of that arch, with the student's weights; strict, so none is left."""
    net = UNet2DConditionModel(**twins.stock_config(a, teacher)).eval()
    net.load_state_dict({twins.stock_name(k): v for k, v in student.state_dict().items()})
    return net


def difference(one, two, x) -> float:
    with torch.no_grad():
        return float((one(**x).sample - two(**x).sample).abs().max())


@pytest.fixture(scope="module")
def full_size():
    return sd15.unet()


@pytest.fixture(scope="module")
def teacher():
    return random_unet(sd_mini.UNET)


@pytest.fixture(scope="module")
def narrow():
    return random_unet(NARROW)


@pytest.fixture(scope="module")
def seen(narrow):
    with torch.no_grad(), fwkd.captured(narrow) as stages:
        narrow(**inputs(NARROW))
    return stages


@pytest.fixture(scope="module")
def parts(narrow):
    """All 36 stages; what uses them leaves them as they are."""
    return {(s, c): surgery.surrogate(s, c, narrow) for s, c in ALL}


# ------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    "model, count",
    [
        ("SD1.5", 859_520_964),
        ("TinySD", 323_384_964),
        ("Hand-tuned", 276_889_284),
        ("N1", 309_104_004),
        ("N2", 315_746_244),
        ("N3", 306_557_764),
        ("N4", 297_369_284),
    ],
)
def test_parameters_at_the_width_of_sd15(full_size, model, count):
    assert counting.parameters(surgery.student(NANOSD[model], full_size)) == count
    row = paper.family().set_index("model").loc[model.replace("N", "NanoSD", model[1].isdigit())]
    assert row.params_from_strings == count and abs(count / 1e6 - row.params_m) < 1


@pytest.mark.parametrize("model, millions", [("N5", 170), ("N6", 160), ("N7", 130)])
def test_one_r_decoders_meet_the_printed_counts_within_a_percent(full_size, model, millions):
    count = counting.parameters(surgery.student(NANOSD[model], full_size))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_parameters_of_the_ablation(full_size):
    count = counting.parameters(surgery.student(ABLATION, full_size))
    assert count / 1e6 == pytest.approx(565.10, abs=0.005)


def test_counting_takes_no_memory(full_size):
    net = surgery.student(NANOSD["N6"], full_size)
    assert all(p.is_meta for p in net.parameters())


# -------------------------------------------------------------------------------- stock equivalence


def test_sd15s_arch_is_the_teacher(teacher):
    net = surgery.student(SD15, teacher)
    assert net.state_dict().keys() == teacher.state_dict().keys()
    for size in ((0, 0), (13, 10)):
        assert difference(net, teacher, inputs(sd_mini.UNET, 2, *size)) <= 1e-5


@pytest.mark.parametrize("model", ["TinySD", "N2", "N4"])
def test_where_diffusers_has_the_network_ours_equals_it(teacher, model):
    net = surgery.student(NANOSD[model], teacher)
    theirs = stock(NANOSD[model], teacher, net)
    assert counting.parameters(net) == counting.parameters(theirs)
    for size in ((0, 0), (18, 14), (7, 9)):  # sizes that halve unevenly as well
        assert difference(net, theirs, inputs(sd_mini.UNET, 2, *size)) <= 1e-5


def test_diffusers_has_no_other_network_of_the_family(teacher):
    found = [m for m, a in NANOSD.items() if twins.stock_config(a, teacher)]
    assert found == ["TinySD", "N2", "N4"]


# ---------------------------------------------------------------------------------------- interface


@pytest.mark.parametrize("stage, code", ALL, ids=lambda v: v)
def test_every_code_reads_and_writes_the_shapes_of_the_original(parts, seen, stage, code):
    """What makes any six codes compose."""
    part = parts[stage, code]
    read = seen[stage].inputs
    assert ("res_hidden_states_tuple" in read) == (stage[0] == "D")
    with torch.no_grad():
        wrote = part(**read)
    original = seen[stage].outputs
    if stage[0] == "D":
        assert wrote.shape == original[0].shape
        return
    hidden, skips = wrote
    kept = original[: len(skips)]  # E3 of a network without E4 is not downsampled
    assert len(skips) == (2 if stage == "E3" else 3)
    assert [s.shape for s in skips] == [o.shape for o in kept]
    assert hidden.shape == (kept[1] if stage == "E3" else kept[2]).shape


@pytest.mark.parametrize("stage, code", ALL, ids=lambda v: v)
def test_every_stage_keeps_what_its_code_says(parts, stage, code):
    part = parts[stage, code]
    kept = [i for i, r in enumerate(part.resnets) if r is not None]
    marks = "".join("RA" if part.attentions[i] is not None else "R" for i in kept)
    assert marks == code
    places = {1: [2], 2: [0, 2], 3: [0, 1, 2]} if stage[0] == "D" else {1: [0], 2: [0, 1]}
    assert kept == places[code.count("R")]


def test_two_hundred_networks_of_the_space_compose(narrow, parts):
    x, frame = inputs(NARROW), surgery.student(Arch(**BASE), narrow)
    for i, a in enumerate(random.Random(0).sample(arch.space(), 200)):
        for stage, code in a.stages.items():
            group, place = blocks.BLOCK[stage]
            getattr(frame, group)[place - (group == "up_blocks")] = parts[stage, code]
        with torch.no_grad():
            y = frame(**x).sample
        assert y.shape == x["sample"].shape and y.isfinite().all(), a
        if i % 10 == 0:  # exchanging stages gives the network that surgery makes
            net = surgery.student(a, narrow)
            assert net.arch == a and difference(net, frame, x) == 0


@pytest.mark.parametrize("model", [*NANOSD, "ablation"])
def test_the_family_composes_at_odd_sizes(narrow, model):
    x = inputs(NARROW, 1, 11, 6)
    net = surgery.student(NANOSD.get(model, ABLATION), narrow)
    with torch.no_grad():
        assert net(**x).sample.shape == x["sample"].shape


def test_a_reduction_starts_as_the_mean_of_neighbouring_channels(narrow):
    part = surgery.surrogate("D2", "RA", narrow)
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(part.reduce(x), x.unflatten(1, (16, 2)).mean(2))
    assert surgery.surrogate("D3", "RA", narrow).reduce is None  # 32 channels in, 32 out
    assert surgery.surrogate("D2", "RR", narrow).reduce is None  # its first block takes 32


def test_a_student_has_the_surrogates_starting_weights(narrow):
    a = NANOSD["N6"]
    net = surgery.student(a, narrow)
    for stage, code in a.stages.items():
        theirs = surgery.surrogate(stage, code, narrow).state_dict()
        ours = net.stage(stage).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# ------------------------------------------------------------------------- the teacher, the student


@pytest.mark.parametrize("model", ["SD1.5", "N2", "N6"])
def test_the_teacher_is_untouched(narrow, model):
    before = fingerprint(narrow)
    net = surgery.student(NANOSD[model], narrow)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    for stage, code in NANOSD[model].stages.items() if model != "SD1.5" else ():
        for p in surgery.surrogate(stage, code, narrow).parameters():
            p.data.zero_()
    assert fingerprint(narrow) == before and not narrow.training


def test_kept_blocks_have_the_teachers_weights(narrow):
    net, source = surgery.student(NANOSD["N7"], narrow), narrow.state_dict()
    new = [k for k in net.state_dict() if surgery.teacher_name(k, False) not in source]
    assert new and all(".reduce." in k for k in new)
    for k, v in net.state_dict().items():
        assert k in new or torch.equal(v, source[surgery.teacher_name(k, False)]), k


def test_every_parameter_of_a_student_learns(narrow):
    net = surgery.student(NANOSD["N6"], narrow).train()
    net(**inputs(NARROW)).sample.pow(2).mean().backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_precision_follows_the_teacher(narrow):
    half = UNet2DConditionModel.from_config(narrow.config).to(torch.bfloat16)
    for net in (surgery.student(NANOSD["N6"], half), surgery.surrogate("D1", "R", half)):
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


def test_a_saved_student_comes_back_without_a_warning(narrow, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    net, x = surgery.student(NANOSD["N6"], narrow), inputs(NARROW)
    net.save_pretrained(tmp_path)
    again = surgery.NanoUNet.from_pretrained(tmp_path).eval()
    assert again.arch == net.arch and difference(net, again, x) == 0
    assert caplog.text == ""
    monkeypatch.delattr(surgery.stock.Saved, "extract_init_dict")  # and the warning would be seen
    surgery.NanoUNet.from_pretrained(tmp_path)
    assert "not expected" in caplog.text


def test_a_student_works_inside_the_pipeline(teacher):
    torch.manual_seed(0)
    words = judges.tokenizer()
    text = CLIPTextModel(judges.clip(words).config.text_config).eval()
    pipe = sd_mini.pipeline(AutoencoderKL(**sd_mini.VAE).eval(), text, words, teacher)
    student = surgery.student(NANOSD["N6"], teacher)
    other = pipeline.with_parts(pipe, unet=student)
    assert other.unet is student and pipe.unet is teacher and other.vae is pipe.vae
    for height, width in ((64, 64), (40, 56), (72, 24)):  # latents of 32x32, 20x28, 36x12
        made = other(
            "a red cube", height=height, width=width, num_inference_steps=2, output_type="pt"
        )
        assert made.images.shape == (1, 3, height, width) and made.images.isfinite().all()


def test_a_teacher_of_sd2s_type(narrow):
    sd2, x = random_unet(NARROW, **SD2), inputs(NARROW)
    assert difference(surgery.student(SD15, sd2), sd2, x) <= 1e-5
    n2 = surgery.student(NANOSD["N2"], sd2)
    assert difference(n2, stock(NANOSD["N2"], sd2, n2), x) <= 1e-5
    for a in (NANOSD["N6"], ABLATION):
        with torch.no_grad():
            assert surgery.student(a, sd2)(**x).sample.isfinite().all()


# --------------------------------------------------------------------------------------- assembling


def test_trained_surrogates_take_their_places(narrow):
    a = NANOSD["N2"]
    changed = [(s, c) for s, c in a.stages.items() if c != BASE[s]]
    nets = fwkd.surrogates(narrow, changed)
    with torch.no_grad():
        for p in nets.parameters():
            p.add_(0.01)
    net = surgery.assemble(a, narrow, nets)
    for stage, code in changed:
        trained = nets[f"{stage}:{code}"].state_dict()
        assert all(torch.equal(v, trained[k]) for k, v in net.stage(stage).state_dict().items())
    assert torch.equal(net.conv_in.weight, narrow.conv_in.weight)


def test_originals_need_no_surrogate(narrow):
    x, base = inputs(NARROW), Arch(**BASE)
    assert difference(surgery.assemble(base, narrow, {}), surgery.student(base, narrow), x) == 0


def test_a_missing_surrogate_is_named(narrow):
    one = replace(Arch(**BASE), E1="RA", D2="RR")
    with pytest.raises(KeyError, match="D2:RR"):
        surgery.assemble(one, narrow, fwkd.surrogates(narrow, [("E1", "RA")]))


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, word",
    [
        (
            dict(
                block_out_channels=(8, 16),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            ),
            "needs SD 1.5's blocks",
        ),
        (dict(layers_per_block=1), "needs SD 1.5's blocks"),
        (dict(class_embed_type="timestep"), "class, addition and time-condition"),
        (dict(block_out_channels=(8, 16, 16, 32)), "the last two equal"),
    ],
)
def test_another_kind_of_teacher_is_refused_in_one_line(changes, word):
    other = random_unet(NARROW, **changes)
    with pytest.raises(ValueError, match=word) as err:
        surgery.student("R RA RA | RARA RARA RR", other)
    assert "\n" not in str(err.value)


def test_a_teacher_that_lacks_weights_is_refused(narrow):
    net = surgery.student("R R R | R R R", narrow)
    broken = UNet2DConditionModel.from_config(narrow.config)
    del broken.down_blocks[0].resnets[0].conv1
    with pytest.raises(ValueError, match=r"no weights for down_blocks\.0\.resnets\.0\.conv1"):
        surgery.inherit(net, broken, deep=False)


# ------------------------------------------------------------------------------ borrowing, removing


def test_a_borrowed_student_is_the_student_without_a_copy(narrow):
    a = "R RA RA | RARA R RR"  # a one-R decoder: its reduction is its own
    net, copied = surgery.borrow(a, narrow), surgery.student(a, narrow)
    assert difference(net, copied, inputs(NARROW)) == 0
    own = {p.data_ptr() for p in narrow.parameters()}
    strangers = [n for n, p in net.named_parameters() if p.data_ptr() not in own]
    assert strangers == ["up_blocks.1.reduce.weight", "up_blocks.1.reduce.bias"]


@pytest.mark.parametrize("stage", ["E1", "E2", "E3", "E4", "M", "D4", "D3", "D2", "D1"])
def test_any_stage_can_be_removed(narrow, stage):
    whole = surgery.borrow(SD15, narrow)
    before = difference(whole, narrow, inputs(NARROW))
    net, x = surgery.without(whole, stage), inputs(NARROW)
    with torch.no_grad():
        assert net(**x).sample.shape == x["sample"].shape
    assert counting.parameters(net) < counting.parameters(whole)
    assert difference(net, whole, x) > 0
    assert difference(whole, narrow, x) == before == 0  # the whole one is untouched


def test_a_bridge_has_no_parameters_and_the_shapes_of_its_stage(narrow):
    whole = surgery.student(SD15, narrow)
    for stage in ("E1", "E2", "E3", "E4", "D4", "D3", "D2", "D1"):
        x = counting.stage_inputs(narrow, stage, 1, 5)
        real, bridge = whole.stage(stage)(**x), blocks.Bridge(whole.stage(stage))(**x)
        assert [t.shape for t in fwkd._tensors(real)] == [t.shape for t in fwkd._tensors(bridge)]
        assert counting.parameters(blocks.Bridge(whole.stage(stage))) == 0


def test_channels_are_matched_without_parameters():
    x = torch.arange(4.0).view(1, 4, 1, 1)
    assert blocks.match_channels(x, 2).flatten().tolist() == [0.5, 2.5]
    assert blocks.match_channels(x, 8).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(blocks.match_channels(x, 4), x)
