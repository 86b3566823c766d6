"""Programs that use the API below /v1 with OpenAI's clients, with the names of a project."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from dashboard.models import Adapter, BaseModel, DatasetVersion, Project, User

PROMPT = "Hello"
PYTHON = """\
import os

from openai import OpenAI

client = OpenAI(base_url={url}, api_key=os.environ["GRAFTWORKS_TOKEN"])

with open("rows.jsonl", "rb") as rows:
    file = client.files.create(file=rows, purpose="fine-tune")
client.files.wait_for_processing(file.id)
job = client.fine_tuning.jobs.create(model={base}, training_file=file.id)
print(job.id, job.status)

answer = client.chat.completions.create(
    model={model},
    messages=[{{"role": "user", "content": {prompt}}}],
)
print(answer.choices[0].message.content)
"""
JAVASCRIPT = """\
import fs from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({{ baseURL: {url}, apiKey: process.env.GRAFTWORKS_TOKEN }});

const rows = fs.createReadStream("rows.jsonl");
const file = await client.files.create({{ file: rows, purpose: "fine-tune" }});
await client.files.waitForProcessing(file.id);
const job = await client.fineTuning.jobs.create({{ model: {base}, training_file: file.id }});
console.log(job.id, job.status);

const answer = await client.chat.completions.create({{
  model: {model},
  messages: [{{ role: "user", content: {prompt} }}],
}});
console.log(answer.choices[0].message.content);
"""
CURL = """\
curl {files} -H "Authorization: Bearer $GRAFTWORKS_TOKEN" \\
  -F purpose=fine-tune -F file=@rows.jsonl

curl {jobs} -H "Authorization: Bearer $GRAFTWORKS_TOKEN" \\
  --json {job}

curl {completions} -H "Authorization: Bearer $GRAFTWORKS_TOKEN" \\
  --json {chat}
"""


@dataclass(frozen=True)
class Snippet:
    """A program to copy."""

    id: str
    title: str
    code: str


def openai_snippets(project: Project, user: User, url: str) -> list[Snippet]:
    """Return the programs with the newest base model, file and adapter of the project that the user sees."""
    bases = (
        BaseModel.objects.ready().visible_to(user).exclude(project__in=user.projects().exclude(pk=project.pk))
    )
    base_model = bases.order_by("-pk").first()
    adapters = Adapter.objects.select_related("base_model", "project").filter(project=project)
    adapter = adapters.exclude(stage=Adapter.Stage.RETIRED).first()
    version = DatasetVersion.objects.ready().filter(project=project).first()
    base = base_model.hub_id if base_model else BaseModel.objects.ensure_bundled().hub_id
    model = adapter.openai_name if adapter else base
    names = {"url": url, "base": base, "model": model, "prompt": PROMPT}
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in names.items()}
    job = {"model": base, "training_file": f"file-{version.pk}" if version else "file-1"}
    chat = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    calls = {
        "files": shlex.quote(f"{url}/files"),
        "jobs": shlex.quote(f"{url}/fine_tuning/jobs"),
        "completions": shlex.quote(f"{url}/chat/completions"),
        "job": shlex.quote(json.dumps(job, ensure_ascii=False)),
        "chat": shlex.quote(json.dumps(chat, ensure_ascii=False)),
    }
    return [
        Snippet("openai-python", "Python", PYTHON.format(**quoted)),
        Snippet("openai-javascript", "JavaScript", JAVASCRIPT.format(**quoted)),
        Snippet("openai-curl", "curl", CURL.format(**calls)),
    ]
