"""Ways to use an adapter elsewhere: code, commands and files for each server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

from django.utils.translation import gettext as _

from dashboard.models import Adapter, EvaluationItem
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.evaluations.evaluation import adapter_evaluation, base_evaluation
from dashboard.models.jobs.job_state import State
from workers.contract.errors import TargetError
from workers.serving import commands
from workers.serving.commands import ServedAdapter
from workers.serving.smoke_test import Question, llama_cpp_program, ollama_program, peft_program, vllm_program
from workers.target_modules.census import Census

# A longer prompt would hide the code around it.
PROMPT_LETTERS = 2000


@dataclass(frozen=True)
class Recipe:
    """One way to use an adapter: a title, a sentence and the code to copy."""

    id: str
    title: str
    explanation: str
    code: str


@dataclass(frozen=True)
class HighestRank:
    """The adapters that raise `--max-lora-rank`; the rank and the memory for each adapter without them."""

    adapters: list[Adapter]
    rank: int
    lower_rank: int
    lower_slot_bytes: int | None


@dataclass(frozen=True)
class SmokeTest:
    """A row on which the answers of base model and adapter differ, and the programs that ask it.

    `programs`: (recipe, code).
    """

    base: EvaluationItem
    adapter: EvaluationItem
    programs: Sequence[tuple[Recipe, str]]


@dataclass(frozen=True)
class SharedServer:
    """One vLLM server with several adapters of one base model.

    `slot_bytes`: memory for each adapter that the server keeps ready; `full_slot_bytes`: the same without
    `--lora-target-modules`; `widest`: adapters that alone bring a module into the list, with those modules.
    """

    base_model: BaseModel
    adapters: list[Adapter]
    command: str
    slot_bytes: int | None
    full_slot_bytes: int | None
    widest: list[tuple[Adapter, list[str]]]
    highest: HighestRank | None
    left_out: list[tuple[Adapter, str]]


def recipes(adapter: Adapter) -> list[Recipe]:
    """Return the ways to use an adapter, PEFT first."""
    found = [
        Recipe(
            "peft",
            _("Transformers and PEFT"),
            _("Unpack the download beside your program."),
            adapter.usage(),
        )
    ]
    base, server = adapter.base_model, served_adapter(adapter)
    if not (reason := vllm_refusal(adapter)):
        found.append(
            Recipe(
                "vllm",
                "vLLM",
                _(
                    "Unpack the download in the current folder. Requests name the adapter as their `model`. "
                    "The listed modules are the ones that this adapter changes; a server that adapts only "
                    "those needs less memory."
                ),
                commands.vllm_command(
                    base.hub_id, base.revision, base.model_type, [server], in_4bit=adapter.run.in_4bit
                ),
            )
        )
    else:
        found.append(Recipe("vllm", "vLLM", reason, ""))
    if not (reason := adapter.gguf_refusal):
        name = adapter.gguf_name()
        explanation = _("Download the GGUF file, and put the base model's GGUF file in place of BASE.gguf.")
        found.append(Recipe("llama-cpp", "llama.cpp", explanation, commands.llama_cpp_command(name)))
        found.append(Recipe("ollama", "Ollama", explanation, commands.ollama_files(server.name, name)))
    else:
        found.append(Recipe("llama-cpp", "llama.cpp, Ollama, LM Studio", reason, ""))
    return found


def smoke_test(adapter: Adapter, recipes: Sequence[Recipe]) -> SmokeTest | None:
    """Return the programs for those of the recipes that have code; None if no answers differ."""
    scored_base, scored = base_evaluation(adapter.run), adapter_evaluation(adapter.run)
    if scored_base is None or scored is None or scored.state != State.SUCCEEDED:
        return None
    pair = EvaluationItem.objects.shortest_difference(scored_base, scored, PROMPT_LETTERS)
    if pair is None:
        return None
    base, own = pair
    question = Question(own.system or "", own.prompt, base.output, own.output)
    name = served_adapter(adapter).name
    codes = {
        "peft": peft_program(question, adapter.usage()),
        "vllm": vllm_program(question, adapter.base_model.hub_id, name),
        "llama-cpp": llama_cpp_program(question),
        "ollama": ollama_program(question, name),
    }
    programs = [(recipe, codes[recipe.id]) for recipe in recipes if recipe.code]
    return SmokeTest(base, own, programs)


def served_adapter(adapter: Adapter) -> ServedAdapter:
    """Return the adapter as a server sees it."""
    target, stem = adapter.run.spec["target"], adapter.archive_name().removesuffix(".zip")
    ranks = [adapter.run.hyperparameters["r"], *target.get("rank_pattern", {}).values()]
    modules = frozenset(name.rpartition(".")[2] for name in target["target_modules"])
    return ServedAdapter(name=stem, folder=stem, modules=modules, rank=max(ranks))


def vllm_refusal(adapter: Adapter) -> str:
    """Return the reason why vLLM does not serve an adapter, as a sentence; "" if it does."""
    if adapter.run.hyperparameters.get("use_dora"):
        return _("vLLM does not serve DoRA adapters.")
    if adapter.run.spec["target"].get("target_parameters"):
        return _("vLLM does not reliably serve adapters on experts.")
    if served_adapter(adapter).rank > commands.VLLM_RANKS[-1]:
        return _("vLLM serves ranks up to %(rank)s.") % {"rank": commands.VLLM_RANKS[-1]}
    return ""


def shared_server(base_model: BaseModel, adapters: Sequence[Adapter]) -> SharedServer:
    """Return one server for these adapters of a base model."""
    reasons = [(adapter, vllm_refusal(adapter)) for adapter in adapters]
    kept = [adapter for adapter, reason in reasons if not reason]
    servers = [served_adapter(adapter) for adapter in kept]
    command, highest = "", None
    widest: list[tuple[Adapter, list[str]]] = []
    sizes: tuple[int | None, int | None] = None, None
    if kept:
        kind = base_model.model_type
        modules, rank = commands.vllm_modules(servers, kind), commands.vllm_rank(servers)
        in_4bit = all(adapter.run.in_4bit for adapter in kept)
        command = commands.vllm_command(
            base_model.hub_id, base_model.revision, kind, servers, in_4bit=in_4bit
        )
        census = counted_layers(base_model)
        sizes = slot_bytes(census, modules, rank), slot_bytes(census, None, rank)
        highest = highest_rank(base_model, census, kept)
        for adapter, server in zip(kept, servers, strict=True):
            others = frozenset().union(*(other.modules for other in servers if other is not server))
            if len(servers) > 1 and (own := sorted(server.modules - others)):
                widest.append((adapter, own))
    left_out = [(adapter, reason) for adapter, reason in reasons if reason]
    return SharedServer(base_model, kept, command, *sizes, widest, highest, left_out)


def highest_rank(
    base_model: BaseModel, census: Census | None, adapters: Sequence[Adapter]
) -> HighestRank | None:
    """Return the adapters without which a server of all would need a lower rank; None if all need it."""
    servers = [served_adapter(adapter) for adapter in adapters]
    rank = commands.vllm_rank(servers)
    is_high = [commands.vllm_rank([server]) == rank for server in servers]
    if all(is_high):
        return None
    others = [server for server, high in zip(servers, is_high, strict=True) if not high]
    lower_rank = commands.vllm_rank(others)
    lower_bytes = slot_bytes(census, commands.vllm_modules(others, base_model.model_type), lower_rank)
    return HighestRank(list(compress(adapters, is_high)), rank, lower_rank, lower_bytes)


def counted_layers(base_model: BaseModel) -> Census | None:
    """Return the census; None if this version has not counted the layers: a command needs no sizes."""
    try:
        return base_model.load_census()
    except (ValueError, TargetError):
        return None


def slot_bytes(census: Census | None, modules: Sequence[str] | None, rank: int) -> int | None:
    """Return the bytes for each adapter in memory, if the layers are known."""
    return commands.slot_bytes(census, modules, rank) if census else None
