"""Inspects safe model folders and refuses every unsafe one before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import ModelInfo

from workers.contract.errors import ModelError, Stopped
from workers.contract.events import Event, Result
from workers.contract.specs import InspectSpec
from workers.engine.base_models import inspect_model
from workers.target_modules.census import Census
from workers.target_modules.presets import PRESETS, resolve


def inspect(folder: Path, out_dir: Path, **spec: Any) -> dict[str, Any]:
    events: list[Event] = []
    inspect_model.inspect_base_model(InspectSpec(path=str(folder), **spec), out_dir, report=events.append)
    assert isinstance(events[-1], Result)
    return events[-1].values


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_safe_folder_is_counted(folder: Path, tmp_path: Path) -> None:
    values = inspect(folder, tmp_path)
    census = Census.from_dict(json.loads(json.dumps(values["census"])))
    assert resolve(PRESETS["efficient"].roles, census).coverage == "2 of 2 layers, 2 modules"
    assert census.has_chat_template
    assert values["parameters"] == census.parameters > 0
    assert values["path"] == str(folder)
    assert len(values["sha256"]) == 64


def test_the_fingerprint_follows_the_weights_alone(folder: Path, tmp_path: Path) -> None:
    before = inspect(folder, tmp_path)["sha256"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\nHello")
    assert inspect(folder, tmp_path)["sha256"] == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert inspect(folder, tmp_path)["sha256"] != before


def test_the_licence_is_read_from_the_card(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny")
    assert inspect(folder, tmp_path)["license"] == "apache-2.0"


@pytest.mark.parametrize("card", ["# no front matter", "---\nlicense: [unclosed\n---\n"])
def test_model_card_without_a_licence_is_accepted(folder: Path, tmp_path: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    assert inspect(folder, tmp_path)["license"] == ""


def test_it_refuses_pickled_weights_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin.*only safetensors files"):
        inspect(folder, tmp_path)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_it_refuses_weights_that_are_cut_off(folder: Path, tmp_path: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        inspect(folder, tmp_path)


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code"])
def test_it_refuses_a_config_that_asks_for_remote_code(folder: Path, tmp_path: Path, key: str) -> None:
    change_config(folder, **{key: {"AutoModelForCausalLM": "modeling.Evil"}})
    with pytest.raises(ModelError, match=f"remote code \\(`{key}`\\)"):
        inspect(folder, tmp_path)


def test_it_refuses_a_tokenizer_that_asks_for_remote_code(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(ModelError, match=r"tokenizer_config\.json requests remote code"):
        inspect(folder, tmp_path)


def test_it_refuses_python_files_and_runs_none(folder: Path, tmp_path: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"code/modeling\.py"):
        inspect(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_it_refuses_a_link_that_leads_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        inspect(folder, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "contains no settings"),
        ("{}", "cannot be used"),
    ],
)
def test_it_refuses_a_broken_config(folder: Path, tmp_path: Path, content: str, said: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=said):
        inspect(folder, tmp_path)


def test_it_refuses_an_unknown_model_type(folder: Path, tmp_path: Path) -> None:
    change_config(folder, model_type="house_of_cards")
    with pytest.raises(ModelError, match="house_of_cards"):
        inspect(folder, tmp_path)


def test_it_refuses_a_broken_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer of tiny cannot be loaded") as caught:
        inspect(folder, tmp_path)
    assert str(tmp_path) not in caught.value.message


def test_it_refuses_a_folder_without_config_and_one_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        inspect(folder, tmp_path)
    with pytest.raises(ModelError, match="no model folder named absent"):
        inspect(tmp_path / "absent", tmp_path)


def test_inspection_stops_on_cancel(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="cancel"):
        inspect_model.inspect_base_model(
            InspectSpec(path=str(folder)), tmp_path, report=lambda event: None, should_stop=lambda: "cancel"
        )


def unreachable(self: object, repo: str, **_: object) -> ModelInfo:
    raise httpx2.ConnectError("Name or service not known")


def ships_code(self: object, repo: str, **_: object) -> ModelInfo:
    names = ("config.json", "model.safetensors", "modeling_x.py")
    return ModelInfo(id=repo, sha="1" * 40, siblings=[{"rfilename": name, "size": 1} for name in names])


def test_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.base_models.inspect_model.HfApi.model_info", unreachable)
    with pytest.raises(
        ModelError, match=r"so some/model cannot be downloaded. Put the model's folder under DATA_DIR"
    ):
        inspect_model.inspect_base_model(
            InspectSpec(hub_id="some/model", cache=str(tmp_path)), tmp_path, report=lambda event: None
        )


def test_repository_with_code_is_refused_before_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.base_models.inspect_model.HfApi.model_info", ships_code)
    with pytest.raises(ModelError, match=r"modeling_x\.py"):
        inspect_model.inspect_base_model(
            InspectSpec(hub_id="some/model", cache=str(tmp_path)), tmp_path, report=lambda event: None
        )
    assert not list(tmp_path.iterdir())


def test_invalid_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no public model named"):
        inspect_model.inspect_base_model(
            InspectSpec(hub_id="../../etc", cache=str(tmp_path)), tmp_path, report=lambda event: None
        )
