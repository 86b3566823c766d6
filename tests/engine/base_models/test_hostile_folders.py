"""Model folders that somebody made to cost time and memory, or to reach beyond themselves, are refused."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.engine_cost import run_engine
from tests.tiny_model import tiny_base
from workers.contract.errors import ModelError
from workers.contract.specs import InspectSpec
from workers.engine.base_models import inspect_model, limited_inspection
from workers.engine.base_models.config_limits import check_config
from workers.engine.base_models.folder_checks import read_license
from workers.engine.base_models.model import end_ids, load_base, load_tokenizer
from workers.engine.training import chat_templates

MAX_SECONDS = 10.0
# Beyond the libraries, which take 250 MB with the CPU build of torch: 1 GB in all.
MAX_GROWTH = 750_000_000


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def inspect(folder: Path, out_dir: Path) -> None:
    inspect_model.inspect_base_model(InspectSpec(path=str(folder)), out_dir, report=lambda event: None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 900),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 2.5),
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", [10**9]),
        ("vocab_size", 10**12),
        ("vocab_size", 9_999_999),
        ("vocab_size", None),
        ("hidden_size", 10**9),
        ("hidden_size", "wide"),
        ("hidden_size", float("inf")),
        ("hidden_size", float("nan")),
        ("num_attention_heads", 0),
        ("num_attention_heads", 10**7),
        ("num_key_value_heads", 0),
        ("intermediate_size", 10**12),
        ("intermediate_size", "x"),
        ("head_dim", 10**10),
        ("num_local_experts", 10**8),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "small"),
        ("rope_parameters", "none"),
        ("rope_parameters", {"rope_type": "../x", "rope_theta": 1}),
        ("hidden_act", "os.system"),
        ("dtype", "system"),
        ("dtype", ["float32"]),
        ("torch_dtype", "load"),
        ("attn_implementation", "somebody/kernels"),
        ("model_type", ["llama"]),
        ("text_config", {"num_hidden_layers": 10**6}),
    ],
)
def test_a_hostile_config_is_refused(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    change_config(folder, **{name: value})
    with pytest.raises(ModelError) as caught:
        inspect(folder, tmp_path)
    assert len(caught.value.message) < 700


def test_sizes_of_large_models_are_within_the_limits() -> None:
    check_config(
        {
            "num_hidden_layers": 126,
            "hidden_size": 16_384,
            "intermediate_size": [53_248, 53_248],
            "num_attention_heads": 128,
            "num_key_value_heads": None,
            "vocab_size": 262_144,
            "n_routed_experts": 512,
            "num_nextn_predict_layers": 0,
            "time_step_limit": [0.0, float("inf")],
            "sliding_window": -1,
            "no_rope_layers": [],
            "layers_block_type": ["mamba", "attention"],
            "torch_dtype": "torch.bfloat16",
            "vision_config": {"depth": 32, "num_heads": 16, "image_size": [448, 448]},
        }
    )


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "/etc/hostname", "absent.safetensors", "config.json"]
)
def test_an_index_names_only_weights_of_its_folder(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": target}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a weight file of this folder"):
        inspect(folder, tmp_path)


@pytest.mark.parametrize("name", ["README.md", "generation_config.json", "extra.jinja", "sub/vocab.json"])
def test_a_pipe_is_refused_before_it_is_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="is a pipe or a device"):
        inspect(folder, tmp_path)


def test_links_to_devices_and_in_circles_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        inspect(folder, tmp_path)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to("vocab.txt")
    with pytest.raises(ModelError, match="is a broken link"):
        inspect(folder, tmp_path)


def aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "---\n" + "\n".join(lines) + "\nlicense: *a11\n---\n"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (aliases(), "contains YAML aliases"),
        ("---\nlicense: " + "x" * 100_000 + "\n---\n", "larger than 64 kB"),
    ],
)
def test_a_hostile_front_matter_is_refused(folder: Path, tmp_path: Path, card: str, said: str) -> None:
    (folder / "README.md").write_text(card)
    with pytest.raises(ModelError, match=said):
        inspect(folder, tmp_path)


@pytest.mark.parametrize(
    "card",
    ["---\nlicense: " + "[" * 20_000 + "\n---\n", "---\nlicense: !!python/object/apply:os.getcwd []\n---\n"],
)
def test_an_unreadable_front_matter_states_no_licence(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    assert read_license(folder) == ""


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!timestamp x", "!!bool x", "0x" + "f" * 5_000, "1" + ":1" * 9_000]
)
def test_values_of_a_front_matter_are_text(folder: Path, value: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {value}\n---\n")
    assert read_license(folder) == value.rpartition(" ")[2].strip('"')[:200]


@pytest.mark.parametrize(
    "values", [{"eos_token_id": ["x", 1]}, {"max_length": "long"}, {"watermarking_config": 5}, {"a": "b"}]
)
def test_a_hostile_generation_config_is_ignored_or_refused(folder: Path, values: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))
    base = tiny_base(folder)
    with contextlib.suppress(ModelError):
        end_ids(load_base(base, torch.float32, torch.device("cpu")), load_tokenizer(base))


def many_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=10**9)


def bomb(folder: Path) -> None:
    (folder / "README.md").write_text(aliases())


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


def template(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return write


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
# A backward search that takes hours inside of one call, in which no signal is looked at.
SEARCH = "{{ ('a' * 9999999).rfind('ab' + 'a' * 4999998) }}"
TEMPLATES = {
    "loop": LOOP,
    "search": SEARCH,
    "5 GB": "{{ 'x' * 5000000000 }}",
    "text for ever": "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 999 }}{% endfor "
    "%}{% endfor %}",
    "20 MB": "{{ 'x' * 20000000 }}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "division": "{{ 1 // 0 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "syntax": "{% for message in messages %}",
    "brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "nested loops": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
}


# They end at the limit of time, as `loop` does between and `search` inside of calls.
REPEATING = ("text for ever", "power")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.proof if name in REPEATING else ()) for name in TEMPLATES]
)
def test_a_hostile_chat_template_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # A tenth of the product's limit: those that end there would take it as a whole.
    monkeypatch.setattr(chat_templates, "RENDER_SECONDS", 0.2)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    with pytest.raises(ModelError, match="The base model's chat template") as caught:
        inspect(folder, tmp_path)
    assert len(caught.value.message) < 400


def grow(letter: str, times: int) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": letter}, "content": letter * times}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def after(token: str, *, times: int, ids: int) -> dict[str, Any]:
    one = {"SpecialToken": {"id": token, "type_id": 0}}
    known = {token: {"id": token, "ids": [0] * ids, "tokens": [token] * ids}}
    return {"type": "TemplateProcessing", "single": [one] * times, "pair": [], "special_tokens": known}


def added(count: int) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": number, "content": f"<t{number}>", **flags} for number in range(count)]


TOKENIZERS: dict[str, dict[str, Any]] = {
    "large replacement": {"normalizer": grow("e", 60_000_000)},
    "large prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 60_000_000}},
    "panic while reading": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////"}},
    "panic while encoding": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
    "unclosed expression": {"pre_tokenizer": split("((")},
    "many tokens": {"post_processor": after("A", times=100, ids=100)},
    "millions of tokens": {"post_processor": after("A", times=5_000, ids=1_000)},
    "no model": {"model": None},
    "unknown type": {"model": {"type": "os.system"}},
    "empty vocabulary": {"model": {"type": "Unigram", "unk_id": None, "vocab": []}},
}
LONG_TOKENIZERS: dict[str, dict[str, Any]] = {
    "doubling": {"normalizer": {"type": "Sequence", "normalizers": [grow("e", 2)] * 40}},
    "600,000 added tokens": {"added_tokens": added(600_000)},
    "endless expression": {"pre_tokenizer": split("(?:(?:l+)+)+!!|(?:(?:A|A)+)+!!")},
}


def change_tokenizer(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def tokenizer(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        change_tokenizer(folder, {**TOKENIZERS, **LONG_TOKENIZERS}[name])

    return write


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_tokenizer_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    change_tokenizer(folder, TOKENIZERS[name])
    with pytest.raises(ModelError, match="tokenizer") as caught:
        inspect(folder, tmp_path)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("limit", "part"), [("TOKENIZER_SECONDS", "tokenizer"), ("CENSUS_SECONDS", "layers")]
)
def test_reading_a_folder_is_limited(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, part: str
) -> None:
    monkeypatch.setattr(limited_inspection, limit, 0.001)
    with pytest.raises(ModelError, match=rf"Reading the {part} of tiny needs more than 0\.001 s"):
        inspect(folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_hostile",
    [
        bomb,
        *(pytest.param(make, marks=pytest.mark.proof) for make in (many_layers, pipe)),
        pytest.param(template(TEMPLATES["loop"]), marks=pytest.mark.proof),
        pytest.param(tokenizer("millions of tokens"), marks=pytest.mark.proof),
        *(
            pytest.param(template(TEMPLATES[name]), marks=pytest.mark.proof)
            for name in ("search", "5 GB", "recursion")
        ),
        *(pytest.param(tokenizer(name), marks=pytest.mark.proof) for name in LONG_TOKENIZERS),
    ],
)
def test_a_hostile_folder_costs_little(
    folder: Path, tmp_path: Path, make_hostile: Callable[[Path], None]
) -> None:
    make_hostile(folder)
    (tmp_path / "spec.json").write_text(json.dumps({"path": str(folder)}))
    failure, seconds, growth = run_engine("inspect", tmp_path)
    print(f"{seconds:.1f} s, {growth / 1e6:.0f} MB: {failure}")
    assert failure["code"] == "bad_model"
    assert seconds < MAX_SECONDS
    assert growth < MAX_GROWTH
