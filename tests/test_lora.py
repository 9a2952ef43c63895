"""lora: a student's own LoRA as diffusers and peft make it, and the teacher's as far as it goes."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import save_file
from test_diffusers import random, whole
from test_surgery import NARROW, difference, inputs, random_unet, stock

from nanosd_lib.networks import lora, surgery, twins
from nanosd_lib.networks.arch import ABLATION, NANOSD, Arch

peft = pytest.importorskip("peft")
X = inputs(NARROW)
SETTINGS = dict(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


@pytest.fixture(scope="module")
def teacher():
    return random_unet(NARROW)


@pytest.fixture
def adapted_teacher(teacher):
    return adapted(copy.deepcopy(teacher))


def adapted(net, name="default", seed=0, **changes):
    """The network with a LoRA of random weights."""
    net.add_adapter(peft.LoraConfig(**(SETTINGS | changes)), adapter_name=name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for k, p in net.named_parameters():
            if f".{name}." in k:
                p.normal_(std=0.3)
    return net


def weights_of(net, name="default") -> dict[str, torch.Tensor]:
    return peft.utils.get_peft_model_state_dict(net, adapter_name=name)


def output(net) -> torch.Tensor:
    with torch.no_grad():
        return net(**X).sample


# ------------------------------------------------------------------------------------- a student's


@pytest.mark.parametrize("model", ["SD1.5", "TinySD", "N2", "N6"])
def test_a_students_lora_is_trained_saved_loaded_and_fused(teacher, tmp_path, model):
    net = surgery.student(NANOSD[model], teacher).requires_grad_(False)
    plain = output(net)
    net.add_adapter(peft.LoraConfig(**SETTINGS))
    assert torch.equal(output(net), plain)  # a new LoRA adds nothing yet
    learning = [p for p in net.parameters() if p.requires_grad]
    step = torch.optim.SGD(learning, 1.0)
    for _ in range(2):
        net(**X).sample.pow(2).mean().backward()
        step.step()
    trained = output(net)
    assert not torch.equal(trained, plain)
    net.save_lora_adapter(tmp_path)
    other = surgery.student(NANOSD[model], teacher)
    other.load_lora_adapter(tmp_path, prefix=None)
    torch.testing.assert_close(output(other), trained)
    other.fuse_lora()
    torch.testing.assert_close(output(other), trained, rtol=1e-4, atol=1e-5)
    other.unfuse_lora()
    other.disable_lora()
    torch.testing.assert_close(output(other), plain, rtol=1e-4, atol=1e-5)
    other.enable_lora()
    other.unload_lora()
    torch.testing.assert_close(output(other), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["TinySD", "N2", "N4"])
def test_a_lora_acts_as_in_the_stock_network(teacher, model):
    net = adapted(surgery.student(NANOSD[model], teacher))
    plain = surgery.student(NANOSD[model], teacher)
    theirs = stock(NANOSD[model], teacher, plain)
    theirs.load_lora_adapter(
        {twins.stock_name(k): v for k, v in weights_of(net).items()}, prefix=None,
        network_alphas=None, metadata=_metadata(net),
    )  # fmt: skip
    assert difference(net, theirs, X) <= 1e-5 and difference(net, plain, X) > 1e-3
    for scale in (0.0, 0.3):
        how = X | dict(cross_attention_kwargs={"scale": scale})
        assert difference(net, theirs, how) <= 1e-5
    assert difference(net, plain, X | dict(cross_attention_kwargs={"scale": 0.0})) <= 1e-5


def _metadata(net) -> dict:
    config = net.peft_config["default"].to_dict()
    return config | {"target_modules": list(config["target_modules"])}


def test_adapters_are_weighed_by_block(teacher):
    a = NANOSD["N2"]
    net = adapted(surgery.student(a, teacher))
    whole, none = output(net), output(surgery.student(a, teacher))
    net.set_adapters("default", {"down": 0.0, "up": 0.0})
    assert torch.allclose(output(net), none, atol=1e-5)
    net.set_adapters(["default"], [{"down": 1, "up": {"block_0": [1.0, 1.0]}}])
    assert torch.allclose(output(net), whole, atol=1e-5)
    net.set_adapters("default", {"up": {"block_0": [0.0, 1.0]}})
    assert not torch.allclose(output(net), whole, atol=1e-5)
    net.set_adapters("default", 0.0)
    assert torch.allclose(output(net), none, atol=1e-5)
    for scales, word in (({"up": {"block_0": [1, 1, 1]}}, "has 2 transformer blocks"),
                         ({"up": {"block_3": 1}}, "no 'block_3'"), ({"middle": 1}, "no 'middle'"),
                         ({"mid": 1}, "no 'mid'")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            net.set_adapters("default", scales)


def test_weights_by_block_are_the_stock_networks(teacher):
    net, theirs = (adapted(n) for n in (surgery.student(NANOSD["SD1.5"], teacher),
                                        copy.deepcopy(teacher)))  # fmt: skip
    for scales in ({"down": 0.5}, {"mid": 0.0, "up": {"block_1": [0.1, 0.2, 0.3]}}):
        for one in (net, theirs):
            one.set_adapters("default", scales)
        assert difference(net, theirs, X) <= 1e-5


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_two_adapters(teacher):
    net = adapted(adapted(surgery.student(NANOSD["N6"], teacher), "a"), "b", seed=1)
    net.set_adapters(["a", "b"], [0.5, 0.5])
    both = output(net)
    net.set_adapters("a")
    assert not torch.equal(output(net), both) and net.active_adapters() == ["a"]
    net.delete_adapters("b")
    assert list(net.peft_config) == ["a"]


# -------------------------------------------------------------------------------------- a teacher's


def by_hand(state, net) -> torch.nn.Module:
    """The student with a teacher's LoRA added into its own weights: W + 2 B A, alpha over rank."""
    net, deep = copy.deepcopy(net), net.arch.deep
    own = dict(net.named_modules())
    names = {surgery.teacher_name(k, deep): k for k in own}
    for k in state:
        if ".lora_A" not in k:
            continue
        module = k.split(".lora_A")[0]
        if module in names:
            with torch.no_grad():
                a, b = state[k], state[k.replace("lora_A", "lora_B")]
                own[names[module]].weight += 2 * b.flatten(1) @ a.flatten(1)
    return net


@pytest.mark.parametrize("model", [*NANOSD, "ablation"])
def test_the_teachers_lora_is_mapped(teacher, adapted_teacher, tmp_path, model):
    net = surgery.student(NANOSD.get(model, ABLATION), teacher)
    state = weights_of(adapted_teacher)
    mapped, left_out = lora.map_lora(state, net)
    assert mapped.keys() <= {k for k in weights_of(adapted(copy.deepcopy(net)))}
    assert len(mapped) == len(weights_of(adapted(copy.deepcopy(net))))  # every module has one
    assert (left_out == []) == (model == "SD1.5")
    assert 2 * len(left_out) + len(mapped) == len(state)
    adapted_teacher.save_lora_adapter(tmp_path)
    want = by_hand(state, net)
    if left_out:
        with pytest.warns(UserWarning, match=r"LoRA: \d+ modules fit the student .*, left out: "):
            net.load_lora_adapter(tmp_path, prefix=None)
    else:
        net.load_lora_adapter(tmp_path, prefix=None)
    assert difference(net, want, X) <= 1e-4
    net.save_lora_adapter(tmp_path / "again", "default_0")  # now it is the student's own
    again = surgery.student(net.arch, teacher)
    again.load_lora_adapter(tmp_path / "again", prefix=None)
    assert difference(again, want, X) <= 1e-4


def test_a_lora_of_one_decoder_stage_goes_to_that_stage(teacher):
    """Nothing but the shapes says whether `up_blocks.1` is the teacher's D3 or the student's D2."""
    net = surgery.student(NANOSD["TinySD"], teacher)
    whole = adapted(copy.deepcopy(teacher), target_modules=r"up_blocks\.1\..*to_(q|k)")
    state = weights_of(whole)
    with pytest.warns(UserWarning, match="left out"):  # D3's middle block is gone
        net.load_lora_adapter(state, prefix=None)
    assert {".".join(k.split(".")[:2]) for k in weights_of(net, "default_0")} == {"up_blocks.0"}


def test_a_lora_of_resnets_with_its_own_ranks(teacher):
    net = surgery.student(NANOSD["N2"], teacher)
    kinds = dict(target_modules=["conv1", "to_q", "time_emb_proj", "conv_in"])
    ranks = dict(rank_pattern={"up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 4})
    whole = adapted(copy.deepcopy(teacher), **kinds, **ranks)
    settings = whole.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    with pytest.warns(UserWarning, match="left out"):
        net.load_lora_adapter(weights_of(whole), prefix=None, metadata=settings)
    got = weights_of(net, "default_0")
    mapped, _ = lora.map_lora(weights_of(whole), net)
    assert got.keys() == mapped.keys() and "conv_in.lora_A.weight" in got
    assert all(torch.equal(v, mapped[k]) for k, v in got.items())


@pytest.mark.parametrize("form", ["peft", "diffusers", "alphas"])
def test_a_pipeline_loads_and_saves_lora(teacher, adapted_teacher, tmp_path, form):
    state = weights_of(adapted_teacher)
    if form == "diffusers":  # older names
        state = {re.sub(r"\.lora_A", ".lora.down", k) for k in state} and {
            k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v
            for k, v in state.items()
        }
    state = {f"unet.{k}": v for k, v in state.items()}
    if form == "alphas":
        state |= {k.replace(".lora_A.weight", ".alpha"): torch.tensor(4.0)
                  for k in state if "lora_A" in k}  # fmt: skip
        state = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v
                 for k, v in state.items()}  # fmt: skip
        state = {_kohya(k): v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "teacher.safetensors")
    net = surgery.student(NANOSD["N2"], teacher)
    pipe = whole(net)
    with pytest.warns(UserWarning, match="LoRA: 24 modules fit|LoRA: .* left out"):
        pipe.load_lora_weights(tmp_path, weight_name="teacher.safetensors", adapter_name="style")
    assert pipe.get_active_adapters() == ["style"]
    assert difference(net, surgery.student(NANOSD["N2"], teacher), X) > 1e-3
    if form == "alphas":
        want = by_hand(weights_of(adapted_teacher), surgery.student(NANOSD["N2"], teacher))
        assert difference(net, want, X) <= 1e-4
    loaded = output(net)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "out", weights_of(net, "style"))
    pipe.fuse_lora()
    torch.testing.assert_close(output(net), loaded, rtol=1e-3, atol=1e-4)
    pipe.unfuse_lora()
    pipe.set_adapters(["style"], [0.0])
    assert not torch.equal(output(net), loaded)
    pipe.unload_lora_weights()
    assert difference(net, surgery.student(NANOSD["N2"], teacher), X) <= 1e-5


def _kohya(key: str) -> str:
    module, _, rest = key.removeprefix("unet.").partition(".lora_")
    if key.endswith(".alpha"):
        module, rest = key.removeprefix("unet.").removesuffix(".alpha"), ""
    return "lora_unet_" + module.replace(".", "_") + (f".lora_{rest}" if rest else ".alpha")


def test_what_cannot_be_mapped_is_said_in_one_line(teacher, adapted_teacher):
    net = surgery.student(NANOSD["N2"], teacher)
    only_mid = {k: v for k, v in weights_of(adapted_teacher).items() if "mid_block" in k}
    wide = {k: random((2, 999)) for k in weights_of(adapted_teacher) if "lora_A" in k}
    for state in (only_mid, wide, {"transformer.h.0.lora_A.weight": random((2, 8))}):
        with pytest.raises(ValueError, match="none of its modules is in the student") as err:
            net.load_lora_adapter(state, prefix=None)
        assert "\n" not in str(err.value)
    with pytest.raises(ValueError, match="StableDiffusionPipeline.lora_state_dict"):
        lora.map_lora({"lora_unet_mid_block.lora_down.weight": random((2, 8))}, net)
    _, left_out = lora.map_lora(weights_of(adapted_teacher), net)
    assert all(k.startswith(("down_", "up_", "mid_")) for k in left_out)


def test_the_keys_of_a_text_encoder_stay(teacher, adapted_teacher):
    state = {f"unet.{k}": v for k, v in weights_of(adapted_teacher).items()}
    state["text_encoder.q_proj.lora_A.weight"] = random((2, 8))
    mapped, _ = lora.map_lora(state, surgery.student(NANOSD["N6"], teacher))
    assert "text_encoder.q_proj.lora_A.weight" in mapped
    assert any(k.startswith("unet.up_blocks.2.") for k in mapped)


# -------------------------------------------------------------------- a teacher that carries a LoRA


def test_an_unfused_lora_of_the_teacher_is_named(adapted_teacher):
    for make in (surgery.student, surgery.borrow):
        with pytest.raises(ValueError, match="unfused LoRA: keep it by fuse_lora") as err:
            make(NANOSD["N2"], adapted_teacher)
        assert "\n" not in str(err.value)
    with pytest.raises(ValueError, match="unfused LoRA"):
        surgery.surrogate("E1", "RA", adapted_teacher)


def test_a_fused_lora_of_the_teacher_is_inherited(teacher, adapted_teacher):
    want = by_hand(weights_of(adapted_teacher), surgery.student(NANOSD["SD1.5"], teacher))
    adapted_teacher.fuse_lora()
    net = surgery.student(NANOSD["SD1.5"], adapted_teacher)
    assert difference(net, want, X) <= 1e-4
    assert not any("lora" in k or "base_layer" in k for k in net.state_dict())
    adapted_teacher.unfuse_lora()
    adapted_teacher.unload_lora()
    plain = surgery.student(NANOSD["SD1.5"], adapted_teacher)
    assert difference(plain, teacher, X) <= 1e-4


def test_a_disabled_lora_of_the_teacher_is_not_there(teacher, adapted_teacher):
    adapted_teacher.disable_lora()
    net = surgery.student(NANOSD["N2"], adapted_teacher)
    assert difference(net, surgery.student(NANOSD["N2"], teacher), X) == 0


def test_a_teacher_inside_peft(teacher):
    inside = peft.get_peft_model(copy.deepcopy(teacher), peft.LoraConfig(**SETTINGS))
    with pytest.raises(ValueError, match="unfused LoRA"):
        surgery.student(NANOSD["N2"], inside)
    inside.merge_adapter()
    assert difference(surgery.student(NANOSD["N2"], inside),
                      surgery.student(NANOSD["N2"], teacher), X) <= 1e-5  # fmt: skip


# --------------------------------------------------------------------------------------- IP-Adapter


def ip_adapter(net) -> dict:
    """Weights of an IP-Adapter for this network, as its file holds them."""
    state, n = {}, 0
    for k, module in net.named_modules():
        if not k.endswith(("attn1", "attn2")):
            continue
        if k.endswith("attn2"):
            for i, part in enumerate(("to_k_ip", "to_v_ip")):
                shape = (module.to_k.weight.shape[0], NARROW["cross_attention_dim"])
                state[f"{n}.{part}.weight"] = random(shape, 10 * n + i)
        n += 1
    d = NARROW["cross_attention_dim"]
    proj = {"proj.weight": random((4 * d, 8)), "proj.bias": random((4 * d,))}
    proj |= {"norm.weight": torch.ones(d), "norm.bias": torch.zeros(d)}
    return {"image_proj": proj, "ip_adapter": state}


def pictured(net) -> torch.Tensor:
    with torch.no_grad():
        return net(**X, added_cond_kwargs={"image_embeds": [random((2, 1, 8))]}).sample


def test_an_ip_adapter_of_the_teacher_reaches_the_same_blocks(teacher):
    state, whole = ip_adapter(teacher), copy.deepcopy(teacher)
    whole._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    theirs = {k: p for k, p in whole.attn_processors.items() if "attn2" in k}
    for a in (*NANOSD.values(), ABLATION, Arch.parse("RARA RA R | RAR RRA RARARA")):
        net = surgery.student(a, teacher)
        plain = output(net)
        net._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        for k, p in net.attn_processors.items():
            if "attn2" in k:
                assert type(p) is IPAdapterAttnProcessor2_0
                other = theirs[surgery.teacher_name(k, a.deep)]
                assert torch.equal(p.to_k_ip[0].weight, other.to_k_ip[0].weight)
        if any(isinstance(p, IPAdapterAttnProcessor2_0) for p in net.attn_processors.values()):
            assert not torch.equal(pictured(net), plain)


def test_an_ip_adapter_of_the_student_stays_and_another_is_refused(teacher):
    net = surgery.student(NANOSD["N2"], teacher)
    own = ip_adapter(net)["ip_adapter"]
    assert lora.ip_weights(own, net) is own
    other = ip_adapter(surgery.student(NANOSD["N6"], teacher))["ip_adapter"]
    with pytest.raises(ValueError, match="made for 3 transformer blocks; .* has 6, its teacher 16"):
        lora.ip_weights(other, net)
