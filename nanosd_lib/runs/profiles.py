"""Profiles: every budget of a run in one strict, frozen object, read from `budgets/<name>.yaml`.

`smoke`, `mini`, `full` and `sd15` walk the same path of code and differ in numbers alone.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

BUDGETS = Path(__file__).parents[1] / "budgets"
NAMES = ("smoke", "mini", "full", "sd15")
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?\Z", re.ASCII)
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """No conversion, no unknown field, no assignment, no NaN."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Teacher(Strict):
    path: Annotated[str, Field(min_length=1)]  # a folder, or an entry of data/weights.yaml

    @property
    def local(self) -> bool:
        return self.path.startswith(("data/", "/", "./", "../"))


class Samples(Strict):
    features: Literal["mini-clip", "inception-2015"]  # what Frechet distances are taken over
    steps: Count
    guidance: Annotated[float, Field(ge=1)]
    batch: Count


class TeacherCheck(Strict):
    reconstructions: Annotated[int, Field(ge=2)]
    prompts: Count  # of each kind


class Cost(Strict):
    batch: Count
    repeats: Count
    warmup: Annotated[int, Field(ge=0)]
    networks: Count
    compositions: Count  # networks drawn at random that must run


class Sensitivity(Strict):
    pairs: Annotated[int, Field(ge=2)]
    images: Annotated[int, Field(ge=2)]


class FwKD(Strict):
    steps: Count
    batch: Count
    scenes: Count
    heldout: Count
    lr: Rate
    keep_error: Annotated[float, Field(gt=0)]
    data_fraction: Fraction  # of the scenes, for the comparison with all of them


class VAE(Strict):
    scenes: Count
    crops: Count  # of photographs, trained on beside the scenes
    size: Count  # pixels on a side in training
    heldout: Annotated[int, Field(ge=2)]  # pictures of each kind that are never trained on
    steps: Count  # of the slim student; others get as many multiply-adds
    ablation_steps: Count
    seeds: Count
    batch: Annotated[int, Field(ge=2)]
    lr: Rate
    latent: Weight
    kl: Weight
    reconstruction: Weight
    perceptual: Weight
    judge: Literal["mini-attributes", "lpips-vgg"]  # backbone of the perceptual term and of LPIPS

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss."""
        return self.model_dump(include={"latent", "kl", "reconstruction", "perceptual"})


class Restoration(Strict):
    scenes: Count
    crops: Count  # of photographs, trained on beside the scenes
    heldout: Annotated[int, Field(ge=2)]  # pictures of each kind that are judged
    steps: Count
    batch: Count
    lr: Rate
    seeds: Count  # at most, of the systems that are trained with several
    rank: Count  # of the adapters; at most a quarter of a layer's width is used
    megapixels: Annotated[float, Field(gt=0)]  # of the photograph that is restored whole
    tiles: Count  # that are timed: as many as the paper's photograph has
    loss: Literal["mini-attributes", "lpips-vgg"]  # backbone of the perceptual loss
    judge: Literal["mini-clip", "lpips-alex"]  # of the LPIPS that judges: no loss has it


class Search(Strict):
    initial: Annotated[int, Field(ge=2)]
    evaluations: Count  # per problem
    images: Annotated[int, Field(ge=2)]


class Family(Strict):
    align_steps: Count
    align_batch: Count
    align_lr: Rate
    diversity: Count  # prompts, of which four pictures each are drawn
    paths: Count  # between two noises each
    many: Count | None  # pictures of what hangs on them; from a release, or drawn without one


class Profile(Strict):
    name: Literal["smoke", "mini", "full", "sd15"]
    teacher: Teacher
    release: bool  # whether what data/nanosd-mini holds is loaded, or all is trained here
    photographs: Annotated[str, Field(min_length=1)] | None  # a folder of one's own (data.folder)
    dtype: Literal["float32", "bfloat16"]
    device: Literal["auto", "cpu", "cuda"]
    threads: Count
    notebook_minutes: Count  # a notebook that takes longer is stopped
    samples: Samples
    teacher_check: TeacherCheck
    cost: Cost
    sensitivity: Sensitivity
    fwkd: FwKD
    vae: VAE
    search: Search
    family: Family
    restoration: Restoration


class TeacherTraining(Strict):
    """What `make teacher` spends on sd-mini and its judges."""

    seed: Annotated[int, Field(ge=0)]
    threads: Count
    scenes: Count
    crops: Count
    render_share: Fraction  # of every U-Net batch; the rest are photograph crops
    vae_steps: Count
    clip_steps: Count
    classifier_steps: Count
    unet_steps: Count
    attention_off: Annotated[float, Field(ge=0, lt=1)]  # share of steps without the top attention
    deep_supervision: Weight


class Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2: 1e-3 is one, 010 is ten, 1:30 is a text. A key given
    twice is an error.
    """

    yaml_implicit_resolvers = {
        first: [(tag, how) for tag, how in kinds if tag not in (INT, FLOAT)]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            problem = f"the key {twice[0]!r} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        return number(node.value)


Loader.add_implicit_resolver(FLOAT, NUMBER, list("-+.0123456789"))
Loader.add_constructor(FLOAT, Loader.construct_number)


def number(text: str) -> int | float | str:
    """'1_000' -> 1000, '.5e-3' -> 0.0005; any other text as it is."""
    if not NUMBER.fullmatch(text):
        return text
    kind = int if re.fullmatch(r"[-+]?[\d_]+", text) else float
    return kind(text.replace("_", ""))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ValueError, in one line, names the file where it holds nothing."""
    try:
        loader = Loader(path.read_bytes())
        loader.name = path.name
        data = loader.get_single_data()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if data is None:
        raise ValueError(f"{path} is empty")
    return data


def teacher_training() -> TeacherTraining:
    """The budget of `budgets/teacher.yaml`; ValueError in one line where it is wrong."""
    try:
        data = read_yaml(BUDGETS / "teacher.yaml")
        return TeacherTraining.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ValueError(f"budgets/teacher.yaml: {_one_line(error)}") from None


def load(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The profile of that name; overrides take dotted keys, `{"fwkd.steps": 10}`.

    Raises ValueError, in one line, for an unknown profile or key and for a value of a wrong type.
    """
    if name not in NAMES:
        hint = _hint(name, NAMES)
        raise ValueError(f"profile {name!r} does not exist: use one of {', '.join(NAMES)}{hint}")
    data = read_yaml(BUDGETS / f"{name}.yaml")
    if not isinstance(overrides, dict | None):
        raise ValueError(f"overrides = {overrides!r} is refused: a dict of dotted keys is wanted")
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    try:  # JSON, so that a list is a tuple and everything else is strict
        return Profile.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ValueError(f"profile {name}: {_one_line(error)}") from None
    except TypeError as error:
        raise ValueError(f"profile {name}: an override is not plain data: {error}") from None


def _set(data: dict, key: Any, value: Any) -> None:
    """Replace one leaf of the nested budgets; ValueError names the fields that exist."""
    if not isinstance(key, str):
        raise ValueError(f"override {key!r} is refused: a dotted name like 'fwkd.steps' is wanted")
    *sections, leaf = key.split(".")
    here, path = data, ""
    for part in [*sections, leaf]:
        if not isinstance(here, dict) or part not in here or key == "name":
            fields = [f for f in here if f != "name"] if isinstance(here, dict) else []
            wanted = f"use one of {', '.join(path + f for f in fields)}" if fields else "too deep"
            hint = _hint(key, [path + f for f in fields])
            raise ValueError(f"override {key!r} does not exist: {wanted}{hint}")
        parent, here, path = here, here[part], f"{path}{part}."
    if isinstance(here, dict):
        raise ValueError(f"override {key!r} is a section: use one of {_join(path, here)}")
    parent[leaf] = value


def _join(path: str, fields: dict) -> str:
    return ", ".join(path + field for field in fields)


def _hint(wrong: Any, right: list[str] | tuple[str, ...]) -> str:
    close = get_close_matches(str(wrong), right, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _one_line(error: ValidationError) -> str:
    """The first complaint: field, value with its type, what would be accepted."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    value = first["input"]
    wanted = first["msg"][0].lower() + first["msg"][1:]
    return f"{field} = {value!r} ({type(value).__name__}) is refused: {wanted}"
