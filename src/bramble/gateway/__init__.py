"""The gateway: one address that speaks the Ollama and OpenAI APIs in front of the cluster's inference servers.

One process, one event loop. A request passes these modules in this order:

    app            routes, status codes, one log line a request
    ollama_api     Ollama wire format  <-> generation.GenerationRequest / Delta / Done     (pure)
    openai_api     OpenAI wire format  <-> the same                                        (pure)
    router         which (backend, model) targets can serve a name, and which of them next (pure)
    queue          admission, first in first out, bound to a backend only when a slot is free
    exchange       attempts, commit point, deadlines
    backends/*     one adapter per backend kind
    health         who may be chosen: passive signals first, probes for idle and down backends
"""
