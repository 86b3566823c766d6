"""Parse the commands of standard input, separated by NUL, with vLLM's parser; print a line of JSON for each.

Runs in an environment with vLLM, which must not have Graftworks' packages.
"""

from __future__ import annotations

import json
import shlex
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser  # type: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

parser = make_arg_parser(FlexibleArgumentParser())
for command in sys.stdin.read().split("\0"):
    program, serve, *options = shlex.split(command.replace("\\\n", " "))
    assert (program, serve) == ("vllm", "serve")
    parsed = parser.parse_args(options)
    facts = {
        "model": parsed.model_tag,
        "adapters": {adapter.name: adapter.path for adapter in parsed.lora_modules},
        "rank": parsed.max_lora_rank,
        "modules": parsed.lora_target_modules,
        "loads_adapters": parsed.enable_lora,
        "slots": parsed.max_loras,
        "revision": parsed.revision,
        "quantization": parsed.quantization,
    }
    print(json.dumps(facts))
