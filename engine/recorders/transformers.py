"""Records a trace from Hugging Face transformers: its model, built from a GGUF file by the table beside the spec.

Everything is fp32 and eager, one pass over the prompt without a cache. Weights are dequantised, so a quantised file
takes four bytes a weight here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from briolette.backends.base import Weights
from briolette.backends.reading import array_of
from briolette.compiler.errors import BrioletteError

from .config import settings
from .recording import Array, Reference, main, not_installed
from .table import Row, Theirs, chosen

try:
    import torch
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    not_installed(missing)

RECORDED = "recorded"  # the name of an attention that shows its operands, and then is the eager one
ATTENTION = ("query", "key", "value")


def record(reference: Reference) -> dict[str, str]:
    """Runs the prompt and keeps every value that the table names."""
    model = build(reference)
    Hooks(reference, model).run()
    return {"producer": f"transformers {transformers.__version__}", "precision": "f32"}


def build(reference: Reference) -> Any:
    """transformers' model with the file's weights. Raises BrioletteError where the two do not fit each other."""
    file, table = reference.file, reference.table
    given = settings(table, "transformers config", file.header, reference.layers)
    name = given.pop("class")
    kind = getattr(transformers, name, None)
    if kind is None:
        raise BrioletteError(
            f"transformers {transformers.__version__} has no {name}: `make peers` installs a release that has it"
        )
    config = kind.config_class(**given, attn_implementation="eager", experts_implementation="eager")
    with no_init_weights():
        model = kind(config).float().eval()
    own = model.state_dict(keep_vars=True)
    buffers = dict(model.named_buffers())
    unset, seen = set(own), set[int]()  # tied parameters are one, under two names
    for row in table.unrolled("transformers weights", reference.layers):
        choice = chosen(row, file.header.tensors)
        if choice is None or not all(one.name in own or one.name in buffers for one in row.theirs):
            continue
        targets = [own[one.name] if one.name in own else buffers[one.name] for one in row.theirs]
        unset -= {one.name for one in row.theirs}
        if all(id(target) in seen for target in targets):
            continue
        seen |= set(map(id, targets))
        for one, target, array in zip(row.theirs, targets, _parts(reference, row, choice, targets), strict=True):
            target.data = _as_theirs(array, one, target, model)
    if unset:
        some = ", ".join(sorted(unset)[:3])
        raise BrioletteError(f"no tensor of {file.path} is {some}, a parameter of {kind.__name__}; see {table.path}")
    return model


def _parts(reference: Reference, row: Row, choice: tuple[str, ...], targets: list[Any]) -> list[Array]:
    """The row's tensors, put together and cut into as many as they have parameters, along the rows."""
    tensors = [_tensor(reference, name) for name in choice]
    whole = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=-2)
    if len(row.theirs) == 1:
        return [whole]
    ends = np.cumsum([target.shape[0] for target in targets])
    if ends[-1] != len(whole):
        raise reference.table.fail(f"{choice[0]} has {len(whole)} rows, and these have {ends[-1]}", row.line)
    return np.split(whole, ends[:-1])


def _tensor(reference: Reference, name: str) -> Array:
    if name.isdigit():
        return np.array([int(name)], np.float32)
    return array_of(Weights(reference.file.tensor_bytes), reference.module, name)


def _as_theirs(array: Array, one: Theirs, target: Any, model: Any) -> Any:
    """One of our tensors as their parameter holds it. Only the number of rows may be another: heads of a layer."""
    if one.change == "pairs":  # rows 2j and 2j + 1 of a head are theirs j and j + head / 2
        array = array.reshape(-1, _head(model) // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    elif one.change == "plus one":
        array = array - np.float32(1)
    elif one.change == "divided":
        array = target.numpy() / array
    if array.shape[1:] != tuple(target.shape)[1:]:
        raise BrioletteError(f"{one.name} is {list(target.shape)} in transformers and {list(array.shape)} in the file")
    return torch.from_numpy(np.array(array, np.float32))


def _head(model: Any) -> int:
    found = getattr(model.config, "head_dim", None)
    return int(found or model.config.hidden_size // model.config.num_attention_heads)


class Hooks:
    """Sees the values of a model's modules and keeps those that the table names."""

    def __init__(self, reference: Reference, model: Any):
        self.reference, self.model = reference, model
        self.wanted = reference.wanted("transformers values")
        self.names = {module: name for name, module in model.named_modules()}
        AttentionInterface.register(RECORDED, self.attention)
        AttentionMaskInterface.register(RECORDED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        model.set_attn_implementation(RECORDED)

    def run(self) -> None:
        modules = dict(self.model.named_modules())
        for one in self.wanted:
            name, _, method = one.name.rpartition(".") if one.word == "result" else (one.name, "", "")
            module = modules.get(name)  # some rows are of what only some models have
            if module is None or one.word in ATTENTION:
                continue
            if method:
                setattr(module, method, self.instead(one, getattr(module, method)))
            elif one.word == "input":
                module.register_forward_pre_hook(self.before(one))
            else:
                module.register_forward_hook(self.after(one))
        ids = torch.tensor([self.reference.tokens])
        with torch.no_grad():
            # With output_hidden_states nothing is computed for the last token alone.
            result = self.model(ids, use_cache=False, output_hidden_states=True)
        self.take(Theirs("logits"), result.logits)

    def before(self, one: Theirs) -> Callable[..., None]:
        return lambda _module, args: self.take(one, args[one.number])

    def after(self, one: Theirs) -> Callable[..., None]:
        return lambda _module, _args, out: self.take(one, out[one.number] if isinstance(out, tuple) else out)

    def instead(self, one: Theirs, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method that does what it did, and has its result kept."""

        def call(*args: Any, **named: Any) -> Any:
            result = method(*args, **named)
            self.take(one, result)
            return result

        return call

    def attention(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        """Eager attention; heads come first here and after the tokens in what is kept."""
        for word, heads in zip(ATTENTION, (query, key, value), strict=True):
            self.take(Theirs(self.names[module], word), heads.transpose(1, 2))
        # One count for all layers of a kind is all that a configuration has; the weights may differ.
        module.num_key_value_groups = query.shape[1] // key.shape[1]
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **options)

    def take(self, one: Theirs, value: Any) -> None:
        """Keeps a value if it, or what a row makes of it, has a label."""
        for change in ("", "pairs", "heads"):
            label = self.wanted.get(replace(one, change=change))
            if label is not None:
                array = value.detach().clone().numpy()
                if change == "pairs":
                    array = array.reshape(-1, 2, _head(self.model) // 2).swapaxes(1, 2)
                elif change == "heads":
                    array = array.swapaxes(1, 2)
                self.reference.put(label, array)


if __name__ == "__main__":
    main("transformers", __doc__.partition("\n")[0], record)
