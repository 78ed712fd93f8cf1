"""Writes a GGUF file as a folder that vLLM serves. Run by the Python of vLLM's environment, which has transformers and torch.

python vllm_convert.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(file: Path, folder: Path) -> None:
    """bfloat16: half the bytes to read for each token, and more exact than the file's four bits."""
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.save_pretrained(str(folder))
    unpacked = GgufConfig(dequantize=True)  # else the weights stay in the file's blocks, which can't be saved
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, quantization_config=unpacked, dtype=torch.bfloat16
    )
    model.save_pretrained(str(folder))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
