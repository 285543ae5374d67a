#!/usr/bin/python
"""Ansible module: what is in a GGUF file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: What a planner must know of the model in a GGUF file
description:
  - Reads the header of a GGUF file on the node; the weights are never read. C(bramble model info) says the same of a
    file on the controller.
  - Fails with the file's name and what is wrong with it if it is not a whole language model.
options:
  path:
    description: The file.
    type: path
    required: true
attributes:
  check_mode:
    description: Runs as without check mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Bramble
"""

EXAMPLES = r"""
- name: Read the model's facts
  gguf_info:
    path: /var/lib/bramble/models/my-model.gguf
  register: facts

- name: Show the bytes of each layer
  ansible.builtin.debug:
    var: facts.model.layer_bytes
"""

RETURN = r"""
model:
  description: The facts. Widths count values; bytes are those of the weights as they are stored.
  returned: success
  type: dict
  contains:
    name:
      description: The model's own name, or that of the file.
      type: str
      returned: always
    architecture:
      description: As llama.cpp names it.
      type: str
      returned: always
      sample: llama
    quantization:
      description: The mix that the file says it has, or else the type of most of its weights.
      type: str
      returned: always
      sample: Q4_K_M
    layers:
      description: Transformer blocks, without the output layer that llama.cpp adds when it counts.
      type: int
      returned: always
    context:
      description: Tokens that it was trained for.
      type: int
      returned: always
    embedding:
      description: Width of the residual stream.
      type: int
      returned: always
    feed_forward:
      description: Inner width of the feed-forward part; of one expert in a mixture.
      type: int
      returned: always
    heads:
      description: Query heads.
      type: int
      returned: always
    kv_heads:
      description: Heads of keys and values.
      type: int
      returned: always
    key_length:
      description: Width of one head's key.
      type: int
      returned: always
    value_length:
      description: Width of one head's value.
      type: int
      returned: always
    vocabulary:
      description: Tokens.
      type: int
      returned: always
    experts:
      description: Experts in each layer. 0 in a dense model.
      type: int
      returned: always
    experts_used:
      description: Experts that one token goes through. 0 in a dense model.
      type: int
      returned: always
    tied:
      description: Whether the input embedding serves as output matrix, too.
      type: bool
      returned: always
    parameters:
      description: Weights in the file.
      type: int
      returned: always
    bytes:
      description: The file's size.
      type: int
      returned: always
    embedding_bytes:
      description: The input embedding.
      type: int
      returned: always
    output_bytes:
      description: The output matrix. 0 if tied.
      type: int
      returned: always
    other_bytes:
      description: What else belongs to no layer.
      type: int
      returned: always
    layer_bytes:
      description: Each layer's weights.
      type: list
      elements: int
      returned: always
    layer_parameters:
      description: Each layer's number of weights.
      type: list
      elements: int
      returned: always
    layer_active_bytes:
      description: What one token reads of each layer. In a mixture that is a share of the experts.
      type: list
      elements: int
      returned: always
    largest_tensor_bytes:
      description: The largest tensor.
      type: int
      returned: always
    type_bytes:
      description: Bytes of the layers' matrices and of the output matrix, by ggml type.
      type: dict
      returned: always
      sample:
        Q4_K: 1362493440
        Q6_K: 325140480
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.gguf import GgufError, model_facts

ARGUMENTS = {"path": {"type": "path", "required": True}}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        module.exit_json(changed=False, model=model_facts(module.params["path"]))
    except GgufError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
