"""diffusers: what its U-Net does when it is called, changed, saved and adapted, a student does.

TinySD, N2 and N4 stand beside diffusers' own network of their weights, SD 1.5 beside the teacher.
"""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoModel,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionSAGPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import EMAModel
from test_surgery import NARROW, SD2, difference, inputs, random_unet, stock
from torch import nn
from transformers import CLIPTextModel

from nanosd_lib.learning import sd_mini
from nanosd_lib.networks import blocks, pipeline, surgery, twins
from nanosd_lib.networks.arch import ABLATION, NANOSD, Arch
from nanosd_lib.quality import judges

ENDS = ("SD1.5", "TinySD", "N2", "N4")
X = inputs(NARROW)
FREEU = (0.9, 0.2, 1.2, 1.4)


@pytest.fixture(scope="module")
def teacher():
    return random_unet(NARROW)


@pytest.fixture(params=ENDS)
def pair(request, teacher):
    """A student and the stock network that it equals, both fresh."""
    net = surgery.student(NANOSD[request.param], teacher)
    if request.param == "SD1.5":
        return net, copy.deepcopy(teacher)
    return net, stock(NANOSD[request.param], teacher, net)


def whole(unet) -> DiffusionPipeline:
    torch.manual_seed(0)
    words = judges.tokenizer()
    clip = judges.clip(words).config.text_config
    clip.hidden_size = clip.intermediate_size = NARROW["cross_attention_dim"]
    clip.num_attention_heads = 2
    vae = AutoencoderKL(**sd_mini.VAE).eval()
    return sd_mini.pipeline(vae, CLIPTextModel(clip).eval(), words, unet)


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder_tensors(net) -> list[torch.Size]:
    """Shapes of what conv_in and the encoder stages emit, for X."""
    seen = []
    hooks = [net.conv_in.register_forward_hook(lambda m, i, o: seen.append(o.shape))]
    for block in net.down_blocks:
        hooks.append(
            block.register_forward_hook(lambda m, i, o: seen.extend(t.shape for t in o[1]))
        )
    with torch.no_grad():
        net(**X)
    for hook in hooks:
        hook.remove()
    return seen


# -------------------------------------------------------------------------------------------- FreeU


def test_freeu_weighs_as_in_the_stock_network(pair):
    net, theirs = pair
    plain = net(**X).sample.detach()
    for one in pair:
        one.enable_freeu(*FREEU)
    assert difference(net, theirs, X) <= 1e-5
    assert float((net(**X).sample - plain).detach().abs().max()) > 1e-3
    odd = inputs(NARROW, 2, 11, 6)
    assert difference(net, theirs, odd) <= 1e-5
    for one in pair:
        one.enable_freeu(1.1, 0.5, 1.1, 0.9)
    assert difference(net, theirs, X) <= 1e-5
    net.disable_freeu()
    assert torch.equal(net(**X).sample, plain)


@pytest.mark.parametrize("model", ["N1", "N3", "N5", "N6", "N7", "Hand-tuned"])
def test_freeu_reaches_students_that_diffusers_does_not_have(teacher, model):
    net = surgery.student(NANOSD[model], teacher)
    plain = net(**X).sample.detach()
    net.enable_freeu(*FREEU)
    y = net(**X).sample
    assert y.isfinite().all() and float((y - plain).detach().abs().max()) > 1e-3
    y.pow(2).mean().backward()  # FreeU writes in place; gradients pass all the same


def test_freeu_of_a_pipeline(teacher):
    pipe = whole(surgery.student(NANOSD["N2"], teacher))
    how = dict(prompt="a red cube", num_inference_steps=1, height=64, width=64, output_type="pt")
    plain = pipe(**how, generator=torch.manual_seed(0)).images
    pipe.enable_freeu(*FREEU)
    assert not torch.equal(pipe(**how, generator=torch.manual_seed(0)).images, plain)
    pipe.disable_freeu()
    assert torch.equal(pipe(**how, generator=torch.manual_seed(0)).images, plain)


# ---------------------------------------------------------------------------- adapters, ControlNets


def adapter_residuals(net) -> list[torch.Tensor]:
    """A residual for each encoder stage at the size that the stock block takes."""
    shapes, out = encoder_tensors(net), []
    for block in net.down_blocks:
        n = sum(r is not None for r in block.resnets) + (block.downsamplers is not None)
        shapes = shapes[1:] if not out else shapes
        late = block.downsamplers is not None and type(block).__name__ == "CrossAttnDownBlock2D"
        out.append(random(shapes[n - 2 if late else n - 1], len(out)))
        shapes = shapes[n:]
    return out


@pytest.mark.filterwarnings("ignore:Passing intrablock residual:FutureWarning")
@pytest.mark.parametrize("key", ["down_intrablock_additional_residuals",
                                 "down_block_additional_residuals"])  # fmt: skip
def test_an_adapters_residuals_count_as_in_the_stock_network(pair, key):
    net, theirs = pair
    given = adapter_residuals(theirs)
    with torch.no_grad():
        one, two = (n(**X, **{key: [r.clone() for r in given]}).sample for n in pair)
    assert float((one - two).detach().abs().max()) <= 1e-5
    assert float((one - net(**X).sample).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("model", [*NANOSD, "ablation"])
def test_a_t2i_adapter_made_for_the_teacher_serves_every_student(teacher, model):
    torch.manual_seed(0)
    adapter = T2IAdapter(3, (8, 16, 32, 32), 1, 8, "full_adapter").eval()
    net = surgery.student(NANOSD.get(model, ABLATION), teacher)
    with torch.no_grad():
        given = adapter(random((2, 3, 64, 64)))
        y = net(**X, down_intrablock_additional_residuals=given).sample
    assert y.isfinite().all() and float((y - net(**X).sample).detach().abs().max()) > 1e-4


def controlnet(unet) -> ControlNetModel:
    net = ControlNetModel.from_unet(unet).eval()
    torch.manual_seed(0)
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(zero.weight, std=0.1)
    return net


def steered(net, control) -> torch.Tensor:
    with torch.no_grad():
        down, mid = control(
            **X, controlnet_cond=random((2, 3, 64, 64)), return_dict=False
        )  # pictures are eight times the latents
        how = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
        return net(**X, **how).sample


def test_a_controlnet_steers_as_in_the_stock_network(pair):
    net, theirs = pair
    down = [random(s, i) for i, s in enumerate(encoder_tensors(theirs))]
    how = dict(down_block_additional_residuals=tuple(down))
    how["mid_block_additional_residual"] = random(down[-1].shape, 99)
    with torch.no_grad():
        assert (
            float((net(**X, **how).sample - theirs(**X, **how).sample).detach().abs().max()) <= 1e-5
        )
        by_place = [*X.values(), None, None, None, None, None, *how.values()]
        assert torch.equal(net(*by_place).sample, net(**X, **how).sample)


def test_a_controlnet_comes_of_a_student_that_has_a_mid_block(teacher):
    net = surgery.student(NANOSD["SD1.5"], teacher)
    made, theirs = controlnet(net), controlnet(teacher)
    assert torch.equal(steered(net, made), steered(teacher, theirs))
    short = surgery.student(ABLATION, teacher)  # one ResNet block a stage: ten residuals
    assert (
        float((steered(short, controlnet(short)) - short(**X).sample).detach().abs().max()) > 1e-4
    )


@pytest.mark.parametrize("model", ["TinySD", "N2", "N6", "N7"])
def test_the_teachers_controlnet_serves_students(teacher, model):
    """E4's and the mid block's residuals have no place where those stages are gone."""
    net = surgery.student(NANOSD[model], teacher)
    with pytest.warns(UserWarning, match="E4 and of the mid block are left out"):
        y = steered(net, controlnet(teacher))
    assert float((y - net(**X).sample).detach().abs().max()) > 1e-4
    own = [random(s) for s in encoder_tensors(net)]
    how = dict(mid_block_additional_residual=own[-1])
    assert len(own) == 9
    assert net(**X, down_block_additional_residuals=own, **how).sample.isfinite().all()
    with pytest.raises(ValueError, match="5 residuals, but .* takes 9, 6 or the 12"):
        net(**X, down_block_additional_residuals=own[:5], **how)


@pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning")
def test_pipelines_of_controlnets_and_adapters(teacher):
    parts = dict(whole(surgery.student(NANOSD["N6"], teacher)).components)
    how = dict(prompt="a red cube", num_inference_steps=1, height=64, width=64, output_type="pt")
    how["image"] = random((1, 3, 64, 64)).sigmoid()
    scale = dict(conditioning_embedding_out_channels=(8, 8))  # sd-mini's latents: a half
    control = ControlNetModel.from_unet(teacher, **scale).eval()
    pipe = StableDiffusionControlNetPipeline(
        **parts, controlnet=[control, control], requires_safety_checker=False
    )
    with pytest.warns(UserWarning, match="left out"):
        made = pipe(**how | dict(image=[how["image"]] * 2), guess_mode=True).images
    assert made.shape == (1, 3, 64, 64)
    parts.pop("image_encoder", None)
    adapter = T2IAdapter(3, (8, 16, 32, 32), 1, 2, "full_adapter").eval()
    pipe = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    assert pipe(**how).images.shape == (1, 64, 64, 3)


def test_what_an_adapter_has_for_e4_is_unused_in_pictures_of_any_size(teacher):
    """In the smallest ones it has the size of what E3 gave."""
    net = surgery.student(NANOSD["N2"], teacher)
    theirs, x = stock(NANOSD["N2"], teacher, net), inputs(NARROW, 2, 4, 4)
    sizes = (8, 2), (16, 2), (32, 1), (32, 1)
    given = [random((2, c, s, s), c) for c, s in sizes]
    with torch.no_grad():
        one, two = (
            n(**x, down_intrablock_additional_residuals=[r.clone() for r in given]).sample
            for n in (net, theirs)
        )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize("model", ["SD1.5", "ablation", "N2", "N6", "without M"])
def test_self_attention_guidance_works_or_says_why_not(teacher, model):
    if model == "without M":
        net = surgery.without(surgery.student(NANOSD["SD1.5"], teacher), "M")
    else:
        net = surgery.student(NANOSD.get(model, ABLATION), teacher)
    pipe = StableDiffusionSAGPipeline(**whole(net).components, requires_safety_checker=False)
    how = dict(num_inference_steps=1, height=64, width=64, output_type="pt", sag_scale=0.7)
    if model in ("SD1.5", "ablation"):
        assert pipe("a red cube", **how).images.isfinite().all()
        return
    with pytest.raises(ValueError, match="this student has no mid block") as err:
        pipe("a red cube", **how)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("model", ["ablation", "N2", "N6", "without M"])
def test_a_motion_network_of_another_student_is_refused_in_one_line(teacher, model):
    whole = surgery.student(NANOSD["SD1.5"], teacher)
    assert type(UNetMotionModel.from_unet2d(whole)) is UNetMotionModel
    net = surgery.student(NANOSD.get(model, ABLATION), teacher)
    net = surgery.without(whole, "M") if model == "without M" else net
    with pytest.raises(ValueError, match="a stock block for this student") as err:
        UNetMotionModel.from_unet2d(net)
    assert "\n" not in str(err.value)


def test_another_controlnet_of_a_student_is_refused_in_one_line(teacher):
    uneven = Arch.parse("RARA RA R R | RAR | RRR RARARA RARARA RARARA")
    nets = [surgery.student(a, teacher) for a in (NANOSD["N6"], "RARA RA R | R R R", uneven)]
    for net in (*nets, surgery.without(surgery.student(ABLATION, teacher), "E2")):
        with pytest.raises(ValueError, match="make a ControlNet of its teacher") as err:
            ControlNetModel.from_unet(net)
        assert "\n" not in str(err.value)


# ---------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("size", ["auto", "max", 1, 2])
def test_attention_slices(pair, size):
    for one in pair:
        one.set_attention_slice(size)
    assert difference(*pair, X) <= 1e-5
    kinds = {type(p).__name__ for p in pair[0].attn_processors.values()}
    assert kinds == {type(p).__name__ for p in pair[1].attn_processors.values()}


def test_attention_slices_that_do_not_go(pair):
    for one in pair:
        with pytest.raises(ValueError, match="has to be smaller or equal"):
            one.set_attention_slice(99)


def test_attention_processors(pair):
    net, theirs = pair
    names = [twins.stock_name(k) for k in net.attn_processors]
    if net.arch.deep:
        names = list(net.attn_processors)
    assert names == list(theirs.attn_processors)
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        for one in pair:
            one.set_attn_processor(processor)
        assert set(map(type, net.attn_processors.values())) == {type(processor)}
        assert difference(net, theirs, X) <= 1e-5
    net.set_attn_processor({k: AttnProcessor() for k in net.attn_processors})
    net.set_default_attn_processor()
    assert difference(net, theirs, X) <= 1e-5
    with pytest.raises(ValueError, match="does not match"):
        net.set_attn_processor({"mid": AttnProcessor()})


def test_fused_projections(pair):
    net, theirs = pair
    for one in pair:
        one.fuse_qkv_projections()
    assert difference(net, theirs, X) <= 1e-5
    for one in pair:
        one.unfuse_qkv_projections()
    assert difference(net, theirs, X) <= 1e-5


def test_xformers_is_refused_alike(pair):
    said = []
    for one in pair:
        with pytest.raises(Exception) as err:  # noqa: B017  whatever the stock network raises
            one.enable_xformers_memory_efficient_attention()
        said.append((err.type, str(err.value)))
    assert said[0] == said[1]
    for one in pair:
        assert not hasattr(one, "enable_forward_chunking")


# ----------------------------------------------------------------------------------------- training


def gradients(net, **changes) -> dict[str, torch.Tensor]:
    net.zero_grad()
    net(**(X | changes)).sample.pow(2).mean().backward()
    return {k: p.grad.clone() for k, p in net.named_parameters()}


@pytest.mark.parametrize("model", ["SD1.5", "TinySD", "N2", "N6"])
def test_gradient_checkpointing_gives_the_same_gradients(teacher, model):
    net = surgery.student(NANOSD[model], teacher).train()
    plain = gradients(net)
    calls = []
    for r in (m for m in net.modules() if type(m).__name__ == "ResnetBlock2D"):
        r.register_forward_pre_hook(lambda m, i: calls.append(m))
    net.enable_gradient_checkpointing()
    saved = gradients(net)
    assert all(torch.equal(plain[k], saved[k]) for k in plain)
    kept = net.arch.deep  # diffusers keeps what the mid block's first one gave
    assert len(calls) == 2 * len(set(calls)) - kept, "the ResNet blocks are computed again"
    net.disable_gradient_checkpointing()
    calls.clear()
    gradients(net)
    assert len(calls) == len(set(calls)) and not net.is_gradient_checkpointing


def test_gradients_are_the_stock_networks(pair):
    net, theirs = pair
    for one in pair:
        one.train().enable_gradient_checkpointing()
    ours, stocks = gradients(net), gradients(theirs)
    for k, g in ours.items():
        other = stocks[k if net.arch.deep else twins.stock_name(k)]
        torch.testing.assert_close(g, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["layerwise casting", "group offload", "repeated blocks"])
def test_ways_to_save_memory_and_time(pair, how):
    net, theirs = pair
    for one in pair:
        if how == "layerwise casting":
            one.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        elif how == "group offload":
            cpu = torch.device("cpu")
            one.enable_group_offload(cpu, cpu, "block_level", 1)
        else:
            one.compile_repeated_blocks(backend="eager")
    assert difference(net, theirs, X) <= 1e-5


@pytest.mark.parametrize("model", ["N2", "N6"])
def test_a_compiled_student_is_the_student(teacher, model):
    torch.compiler.reset()
    net = surgery.student(NANOSD[model], teacher)
    fast = torch.compile(net, backend="aot_eager" if model == "N6" else "eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(fast(**X).sample, net(**X).sample, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name:FutureWarning")
def test_an_average_of_a_student_is_saved_and_loaded(teacher, tmp_path):
    net = surgery.student(NANOSD["N6"], teacher)
    kind = surgery.NanoUNet
    EMAModel(net.parameters(), model_cls=kind, model_config=net.config).save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, kind)
    for one, two in zip(again.shadow_params, net.parameters(), strict=True):
        assert torch.equal(one, two)


# ------------------------------------------------------------------------------------ unusual calls


@pytest.mark.parametrize("changes", [
    dict(timestep=7), dict(timestep=7.5), dict(timestep=torch.tensor(7)),
    dict(timestep=torch.tensor([7])), dict(class_labels=torch.tensor([1, 2])),
    dict(added_cond_kwargs={"text_embeds": torch.ones(2, 4)}),
    dict(cross_attention_kwargs={"scale": 0.5}), dict(cross_attention_kwargs={}),
    dict(encoder_attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])),
    dict(encoder_attention_mask=torch.ones(2, 5, dtype=torch.bool)),
    *(dict(sample=random((2, 4, h, w))) for h, w in ((7, 9), (8, 13), (16, 4), (11, 6), (8, 8))),
    dict(encoder_hidden_states=random((2, 1, 16))), dict(encoder_hidden_states=random((2, 77, 16))),
], ids=lambda c: ",".join(c))  # fmt: skip
def test_an_unusual_call_is_answered_alike(pair, changes):
    assert difference(*pair, X | changes) <= 1e-5


def test_a_tuple_comes_back_where_it_is_asked_for(pair):
    one, two = (n(**X, return_dict=False) for n in pair)
    assert isinstance(one, tuple) and len(one) == len(two) == 1
    assert float((one[0] - two[0]).detach().abs().max()) <= 1e-5


@pytest.mark.parametrize("changes", [
    dict(encoder_hidden_states=random((3, 5, 16))), dict(timestep=torch.tensor([1, 2, 3])),
    dict(encoder_hidden_states=random((2, 5, 8))), dict(sample=random((2, 5, 8, 8))),
    dict(timestep_cond=random((2, 4))), dict(attention_mask=torch.ones(2, 5)),
    dict(encoder_attention_mask=torch.ones(2, 4)), dict(encoder_hidden_states=None),
], ids=lambda c: ",".join(c))  # fmt: skip
def test_what_the_stock_network_refuses_a_student_refuses(pair, changes):
    said = []
    for one in pair:
        try:
            said.append(one(**(X | changes)).sample.detach())
        except Exception as err:
            said.append(type(err))
    if isinstance(said[0], torch.Tensor):
        torch.testing.assert_close(*said, rtol=0, atol=1e-5)
    else:
        assert said[0] is said[1]


# -------------------------------------------------------------------------------- saving, loading


@pytest.mark.parametrize("arch", ["RARA RARA RARA RR | RAR | RRR RARARA RARARA RARARA",
                                  "RARA RARA RARA | RARARA RARARA RARARA",
                                  "RARA RR RARA | RRR RARARA RRR"])  # fmt: skip
def test_the_stock_class_loads_a_student_of_stock_blocks(teacher, tmp_path, arch):
    net = surgery.student(arch, teacher)
    net.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert type(again) is UNet2DConditionModel and difference(net, again, X) <= 1e-5
    assert len(net.config.block_out_channels) == len(net.down_blocks)
    built = UNet2DConditionModel.from_config(net.config)  # the configuration alone says it
    assert built.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("model", ["TinySD", "N2", "N6", "Hand-tuned", "ablation"])
def test_other_loaders_say_which_class_loads_a_student(teacher, tmp_path, model):
    surgery.student(NANOSD.get(model, ABLATION), teacher).save_pretrained(tmp_path)
    for loader in (UNet2DConditionModel, AutoModel):
        with pytest.raises(ValueError, match="nanosd_lib.*NanoUNet") as err:
            loader.from_pretrained(tmp_path)
        assert "\n" not in str(err.value)


def test_a_student_saved_with_four_widths_still_loads(teacher, tmp_path):
    net = surgery.student(NANOSD["N6"], random_unet(NARROW, **SD2))
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["block_out_channels"] == [8, 16, 32] and config["layers_per_block"] == 1
    older = {k: v for k, v in config.items() if k != "removed"}
    older |= dict(block_out_channels=[8, 16, 32, 32], attention_head_dim=[1, 2, 4, 4])
    (tmp_path / "config.json").write_text(json.dumps(older | {"_class_name": "NanoUNet"}))
    assert difference(surgery.NanoUNet.from_pretrained(tmp_path), net, X) <= 1e-5


def test_shards_variants_and_half_precision(teacher, tmp_path):
    net = surgery.student(NANOSD["N2"], teacher)
    net.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert difference(surgery.NanoUNet.from_pretrained(tmp_path / "parts"), net, X) <= 1e-5
    half = copy.deepcopy(net).half()
    half.save_pretrained(tmp_path / "half", variant="fp16")
    again = surgery.NanoUNet.from_pretrained(tmp_path / "half", variant="fp16", dtype=torch.float16)
    assert again.dtype == torch.float16
    for k, v in again.state_dict().items():
        assert torch.equal(v, half.state_dict()[k])
    low = surgery.NanoUNet.from_pretrained(tmp_path / "parts", torch_dtype=torch.bfloat16)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    slow = surgery.NanoUNet.from_pretrained(tmp_path / "parts", low_cpu_mem_usage=False)
    assert difference(slow, net, X) <= 1e-5


def test_a_pipeline_that_holds_a_student_is_saved_and_loaded(teacher, tmp_path):
    pipe = whole(surgery.student(NANOSD["N6"], teacher))
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.unet) is surgery.NanoUNet and again.unet.arch == NANOSD["N6"]
    assert difference(again.unet, pipe.unet, X) <= 1e-5
    alone = AutoModel.from_pretrained(str(tmp_path), subfolder="unet")
    assert type(alone) is surgery.NanoUNet
    assert pipeline.load_teacher(str(tmp_path)).unet.arch == NANOSD["N6"]
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    half = DiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", dtype=torch.float16)
    assert half.unet.dtype == torch.float16


@pytest.mark.parametrize("kind", [
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPAGPipeline,
    StableDiffusionControlNetPipeline, StableDiffusionAdapterPipeline, "own",
], ids=str)  # fmt: skip
def test_another_part_leaves_the_pipeline_what_it_is(teacher, kind):
    kind = type("Own", (StableDiffusionImg2ImgPipeline,), {}) if kind == "own" else kind
    names = inspect.signature(kind.__init__).parameters
    parts = {k: v for k, v in whole(teacher).components.items() if k in names}
    parts |= {"controlnet": ControlNetModel.from_unet(teacher)} if "controlnet" in names else {}
    parts |= {"adapter": T2IAdapter(3, (8, 16), 1, 8)} if "adapter" in names else {}
    how = dict(pag_applied_layers=["down", "mid"]) if "pag_applied_layers" in names else {}
    pipe = kind(**parts, requires_safety_checker=False, **how)
    student = surgery.student(NANOSD["N2"], teacher).half()
    other = pipeline.with_parts(pipe, unet=student)
    assert type(other) is kind and other.unet is student and student.dtype == torch.float16
    assert pipe.unet is teacher and teacher.dtype == torch.float32
    assert all(v is other.components[k] for k, v in pipe.components.items() if k != "unet")
    kept = [vars(p) | dict(p.config) | {"unet": 0} for p in (pipe, other)]
    settings = [{k: v for k, v in p.items() if k in names} for p in kept]
    assert settings[0] == settings[1] and ("pag_applied_layers" in settings[0]) == bool(how)


def test_img2img_around_a_student_draws(teacher):
    parts = whole(teacher).components
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other = pipeline.with_parts(pipe, unet=surgery.student(NANOSD["N6"], teacher))
    how = dict(prompt="a red cube", num_inference_steps=2, output_type="pt", strength=0.5)
    made = other(**how, image=random((1, 3, 64, 64)).sigmoid()).images
    assert made.shape == (1, 3, 64, 64) and made.isfinite().all()


@pytest.mark.parametrize("gone", [("E2",), ("M",), ("D4", "E1"), ("E4", "M", "D1"), ("D2", "E3")])
def test_a_network_without_stages_is_saved_and_loaded(teacher, tmp_path, gone):
    net = whole = surgery.student(NANOSD["SD1.5"], teacher)
    for stage in gone:
        net = surgery.without(net, stage)
    net.save_pretrained(tmp_path)
    again = surgery.NanoUNet.from_pretrained(tmp_path)
    assert again.config.removed == gone and whole.config.removed == ()
    assert difference(again, net, X) <= 1e-5
    assert difference(surgery.without(whole, gone[0]), whole, X) > 0
    with pytest.raises(ValueError, match="NanoUNet"):
        UNet2DConditionModel.from_pretrained(tmp_path)
    odd = inputs(NARROW, 2, 11, 6)
    assert again(**odd).sample.shape == odd["sample"].shape


@pytest.mark.parametrize("stage", ["E4", "M", "D4", "E5", "e1", ""])
def test_a_stage_that_is_not_there_cannot_be_removed(teacher, stage):
    net = surgery.student(NANOSD["N2"], teacher)
    with pytest.raises(ValueError, match=r"this network has E1, E2, E3, D3, D2, D1$"):
        surgery.without(net, stage)
    with pytest.raises(ValueError, match="has E1, E3, D3, D2, D1"):
        surgery.without(surgery.without(net, "E2"), "E2")


def test_a_bridge_takes_adapters_and_odd_sizes(teacher):
    bridge = blocks.Bridge(surgery.student(NANOSD["N2"], teacher).stage("E1"))
    x = random((1, 8, 7, 9))
    _, skips = bridge(x, additional_residuals=torch.ones_like(x))
    assert torch.equal(skips[0], x + 1) and skips[2].shape == (1, 8, 4, 5)


# ----------------------------------------------------------------------------------------- teachers


class Wrapped(nn.Module):
    """What a data-parallel wrapper looks like from outside."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [
    torch.compile, nn.DataParallel, Wrapped, lambda t: nn.DataParallel(torch.compile(t)),
    lambda t: __import__("accelerate").Accelerator(cpu=True).prepare(t),
], ids=["compiled", "parallel", "like-parallel", "both", "accelerate"])  # fmt: skip
def test_a_wrapped_teacher_is_unwrapped(teacher, wrap):
    whole = wrap(copy.deepcopy(teacher))
    for make in (surgery.student, surgery.borrow):
        assert (
            difference(make("R RA RA | RA R RR", whole), make("R RA RA | RA R RR", teacher), X) == 0
        )
    assert twins.stock_config(NANOSD["N2"], whole) == twins.stock_config(NANOSD["N2"], teacher)
    one, two = (surgery.surrogate("E1", "R", t).state_dict() for t in (whole, teacher))
    assert all(torch.equal(one[k], two[k]) for k in two)


def test_a_teacher_compiled_in_parts(teacher):
    parts = copy.deepcopy(teacher)
    parts.down_blocks[0] = torch.compile(parts.down_blocks[0])
    net = surgery.student(NANOSD["N2"], parts)
    assert difference(net, surgery.student(NANOSD["N2"], teacher), X) == 0


def test_what_is_no_unet_is_refused_in_one_line(teacher):
    for other, word in ((nn.Linear(1, 1), "not Linear"), (whole(teacher), "give its .unet"),
                        ("data/sd-mini", "not str"), (None, "not NoneType")):  # fmt: skip
        with pytest.raises(ValueError, match=f"teacher: needs a UNet.*{word}") as err:
            surgery.student(NANOSD["N2"], other)
        assert "\n" not in str(err.value)


@pytest.mark.parametrize("changes, word", [
    (dict(transformer_layers_per_block=2), "transformer_layers_per_block 2"),
    (dict(only_cross_attention=True), "only_cross_attention True"),
    (dict(dual_cross_attention=True), "dual_cross_attention True"),
    (dict(resnet_time_scale_shift="scale_shift"), "resnet_time_scale_shift 'scale_shift'"),
    (dict(time_embedding_type="fourier"), "time_embedding_type 'fourier'"),
    (dict(conv_in_kernel=5), "conv_in_kernel 5"),
    (dict(num_class_embeds=3), "num_class_embeds 3"),
    (dict(attention_type="gated"), "attention_type 'gated'"),
    (dict(mid_block_type=None), "mid_block_type None"),
    (dict(up_block_types=("UpBlock2D",) * 4), "up_block_types"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_a_teacher_with_a_setting_that_a_student_lacks_is_refused(changes, word):
    with pytest.raises(ValueError, match=f"{word}.*not SD 1.5's") as err:
        surgery.student(NANOSD["N2"], random_unet(NARROW, **changes))
    assert "\n" not in str(err.value)


def test_offloaded_weights_are_named(teacher):
    accelerate = pytest.importorskip("accelerate")
    away = copy.deepcopy(teacher)
    accelerate.cpu_offload(away, torch.device("cpu"))
    with pytest.raises(ValueError, match="its weights are offloaded"):
        surgery.student(NANOSD["N2"], away)


def test_weights_in_float8_are_named(teacher):
    small = copy.deepcopy(teacher)
    small.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match="stored in float8.*without layerwise casting"):
        surgery.student(NANOSD["N2"], small)


def test_a_student_of_all_stages_can_teach(teacher):
    deep = surgery.student(NANOSD["SD1.5"], teacher)
    one, two = (surgery.student(NANOSD["N6"], t) for t in (deep, teacher))
    assert difference(one, two, X) == 0
    with pytest.raises(ValueError, match="needs SD 1.5's blocks"):
        surgery.student(NANOSD["N6"], two)
