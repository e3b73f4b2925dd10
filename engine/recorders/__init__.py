"""Traces recorded from other engines, under our names. Run with a Python that has the other engine:

    python -m briolette.engine.recorders.transformers MODEL.gguf --prompt "Hello" -o ref.npz
    python -m briolette.engine.recorders.llama_cpp MODEL.gguf --prompt "Hello" -o ref.npz

`briolette trace MODEL.gguf --against ref.npz` then names the first value that differs.
"""
