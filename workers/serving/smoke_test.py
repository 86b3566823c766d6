"""Programs that ask one question with and without an adapter, and fail if the answer is the base model's.

A server may load an adapter and still answer with the base model, or compute in another number format than
the evaluation. So its two answers must differ, and the adapter's must not agree longer with the base model's
stored answer than with its own. Standard library only.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

# Most tokens of a stored answer (`EvalSpec.max_new_tokens`); tokens that show more than a chance beginning.
MOST_TOKENS, LEAST_TOKENS = 256, 64


@dataclass(frozen=True)
class Question:
    """A chat of one turn, and the beginnings of both stored answers; `system` is "" for none."""

    system: str
    prompt: str
    base_answer: str
    adapter_answer: str

    @property
    def max_tokens(self) -> int:
        """Return tokens that reach the first difference of the answers; a token has one byte at least."""
        base, adapter = self.base_answer, self.adapter_answer
        same = max(length for length in range(len(base) + 1) if adapter.startswith(base[:length]))
        return min(MOST_TOKENS, max(LEAST_TOKENS, len(base[:same].encode()) + 16))


def vllm_program(question: Question, base: str, name: str) -> str:
    """Return the program for vLLM, which has a model name for each of the two."""
    return _chat_program(question, 8000, "model", "model=model", (_quoted(base), _quoted(name)))


def llama_cpp_program(question: Question) -> str:
    """Return the program for llama-server, where a request sets the adapter's scale."""
    model = 'model="any", extra_body={"lora": [{"id": 0, "scale": scale}]}'
    return _chat_program(question, 8080, "scale", model, ("0.0", "1.0"))


def ollama_program(question: Question, name: str) -> str:
    """Return the program for Ollama, with the commands that create the base model by itself."""
    base = f"{name}-base"
    commands = (
        "# First create the base model without the adapter:\n"
        "#   echo 'FROM ./BASE.gguf' > Modelfile.base\n"
        f"#   ollama create {shlex.quote(base)} -f Modelfile.base\n"
    )
    return commands + _chat_program(question, 11434, "model", "model=model", (_quoted(base), _quoted(name)))


def peft_program(question: Question, loading_code: str) -> str:
    """Return the program for Transformers and PEFT, after the code that loads both models."""
    return (
        f"{loading_code}{_values(question)}\n\n"
        "def answer():\n"
        "    if tokenizer.chat_template:\n"
        "        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)\n"
        "    else:\n"
        '        text = "".join(message["content"] + "\\n" for message in messages)\n'
        "    inputs = tokenizer(\n"
        '        text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt"\n'
        "    ).to(model.device)\n"
        f"    output = model.generate(**inputs, do_sample=False, max_new_tokens={question.max_tokens})\n"
        '    tokens = output[0, inputs["input_ids"].shape[1] :]\n'
        "    return tokenizer.decode(tokens, skip_special_tokens=True)\n\n\n"
        "with model.disable_adapter():\n"
        "    base_answer = answer()\n"
        "adapter_answer = answer()\n"
        f"{_CHECK}"
    )


def _chat_program(question: Question, port: int, parameter: str, model: str, values: tuple[str, str]) -> str:
    """Return the program for a server with OpenAI's chat API; `values`: of the parameter, base first."""
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="http://localhost:{port}/v1", api_key="none")\n'
        f"{_values(question)}\n\n"
        f"def answer({parameter}):\n"
        "    reply = client.chat.completions.create(\n"
        f"        {model}, messages=messages, temperature=0, max_tokens={question.max_tokens}\n"
        "    )\n"
        '    return reply.choices[0].message.content or ""\n\n\n'
        f"base_answer, adapter_answer = answer({values[0]}), answer({values[1]})\n"
        f"{_CHECK}"
    )


_CHECK = """

def agreement(stored):
    return max(length for length in range(len(stored) + 1) if adapter_answer.startswith(stored[:length]))


print(f"base model: {base_answer}\\nadapter:    {adapter_answer}")
if adapter_answer == base_answer or agreement(stored_base_answer) > agreement(stored_adapter_answer):
    raise SystemExit("The adapter is not applied: its answer is the base model's.")
print("The adapter is applied.")
"""


def _values(question: Question) -> str:
    chat = [{"role": "system", "content": question.system}] if question.system else []
    lines = (
        f"    {_quoted(message)},\n" for message in [*chat, {"role": "user", "content": question.prompt}]
    )
    return (
        f"messages = [\n{''.join(lines)}]\n"
        "# The answers in the evaluation, which may have been cut\n"
        f"stored_base_answer = {_quoted(question.base_answer)}\n"
        f"stored_adapter_answer = {_quoted(question.adapter_answer)}\n"
    )


def _quoted(value: str | dict[str, str]) -> str:
    """Return a Python literal with strings in double quotes."""
    return json.dumps(value, ensure_ascii=False)
