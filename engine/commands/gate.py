"""`briolette eval prefill`: what a fast prefill costs a model, and whether it is to be the default."""

from __future__ import annotations

from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.evaluation.figures import divergence
from briolette.engine.evaluation.run import Setting, evaluate
from briolette.engine.evaluation.windows import windows
from briolette.engine.gate import EXACT, FAST, MOST, prefill_of, remember
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import many

from .terminal import TELLING, busy, note, result, result_json
from .texts import text_of


def prefill(path: str, text: str, size: int, count: int, options: dict[str, Any], as_json: bool) -> None:
    """Measures, remembers, and says what follows."""
    file = open_gguf(path)
    source, content = source_of(options["spec"], file.header), text_of(text)
    with busy("tokenising the text"):
        cut = windows(content, Tokenizer.from_gguf(file), size, count)
    found = evaluate(file, cut, [Setting(prefill=FAST)], Setting(prefill=EXACT), options, TELLING)
    (row,) = found.rows
    assert row.base is not None and row.loaded is not None
    if row.loaded.weights == "mapped":
        raise BrioletteError(
            "weights are mapped here, and those are multiplied in f32 whatever the prefill: there is nothing to measure"
        )
    value = divergence(row.found, row.base, len(cut))
    kept = remember(file, source, value.kld.mean)
    default = prefill_of(file, source)
    if as_json:
        told = {"mean_kld": value.kld.mean, "mean_kld_error": value.kld.error, "same_top": value.same_top.mean}
        result_json({"file": str(file.path), "scored": cut.scored, **told, "most": MOST, "default": default})
        return
    judged = "at most" if value.kld.mean <= MOST else "more than"
    same = f"the same top token at {100 * value.same_top.mean:.2f} %"
    result(f"mean KLD {value.kld.mean:.6f} ± {value.kld.error:.6f}, {judged} {MOST}; {same}")
    if not kept:
        note("this could not be remembered: the folder of compiled programs cannot be written")
    note(f"prompts of this model are {default} from now on, unless --prefill says otherwise")
    note(f"{many(len(cut), 'window')} of {cut.size} tokens; {cut.scored} predictions count")
