"""Documentation fragment: which model is asked where. The arguments: llm_address() in bramble/options.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description: The address, C(http://address:port), with what stands before C(/api) or C(/v1), if anything does.
    type: str
    required: true
  api:
    description: Its language. V(auto) takes V(ollama) if it has C(/api/version), V(openai) if it has C(/v1/models).
    type: str
    choices: [auto, ollama, openai]
    default: auto
  model:
    description: The model's name, as the address has it.
    type: str
    required: true
  engine:
    description:
      - What the record is to say of the engine where the server does not say it, or says it wrongly - hailo-ollama does
        not tell its version.
    type: dict
    default: {}
    suboptions:
      name:
        description: Its name.
        type: str
      version:
        description: Its version.
        type: str
      commit:
        description: The commit that it was built from.
        type: str
      build_key:
        description: The key of its build.
        type: str
  model_facts:
    description: What the record is to say of the model where the server does not say it.
    type: dict
    default: {}
    suboptions:
      sha256:
        description: The checksum of its file.
        type: str
      quant:
        description: Its quantisation.
        type: str
      bytes:
        description: The size of its file.
        type: int
  build:
    description:
      - C(build.json) of this node's llama.cpp. Its key is taken if the address is of this node and has its commit.
    type: path
    default: /opt/llama.cpp/current/build.json
"""
