"""A vision projector of random weights, a few hundred kilobytes, that llama.cpp loads beside a model of this embedding length.

It sees nothing sensible, but it is real: llama.cpp decodes the image, runs the encoder, and puts the embeddings into the prompt.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

IMAGE, PATCH, WIDTH, FEED, HEADS = 56, 14, 32, 64, 2
TOKENS = (IMAGE // PATCH) ** 2
"""What an image costs in the prompt, without the marks around it."""
_ALIGNMENT = 32
Array = npt.NDArray[np.float32]


def write_projector(path: Path, embedding_length: int) -> None:
    """A CLIP of one layer with LLaVA's two-layer projector. The format: ggml-org/ggml, docs/gguf.md."""
    metadata = [
        _entry("general.architecture", 8, _string("clip")),
        _entry("general.alignment", 4, struct.pack("<I", _ALIGNMENT)),
        _entry("clip.projector_type", 8, _string("mlp")),
        *(_entry(f"clip.{key}", 7, struct.pack("<?", True)) for key in ("has_vision_encoder", "has_llava_projector", "use_gelu")),
        *(_entry(f"clip.vision.{key}", 4, struct.pack("<I", value)) for key, value in {
            "image_size": IMAGE, "patch_size": PATCH, "embedding_length": WIDTH, "feed_forward_length": FEED,
            "projection_dim": embedding_length, "block_count": 1, "attention.head_count": HEADS,
        }.items()),
        _entry("clip.vision.attention.layer_norm_epsilon", 6, struct.pack("<f", 1e-5)),
        *(_entry(f"clip.vision.{key}", 9, struct.pack("<IQfff", 6, 3, 0.5, 0.5, 0.5)) for key in ("image_mean", "image_std")),
    ]  # fmt: skip
    tensors = _tensors(embedding_length)
    infos, data = b"", b""
    for name, array in tensors.items():
        data += b"\0" * (-len(data) % _ALIGNMENT)
        shape = array.shape[::-1]
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += array.tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata) + infos
    path.write_bytes(head + b"\0" * (-len(head) % _ALIGNMENT) + data + b"\0" * (-len(data) % _ALIGNMENT))


def _tensors(embedding_length: int) -> dict[str, Array]:
    random = np.random.default_rng(1)

    def some(*shape: int) -> Array:
        return random.normal(0, 0.02, shape).astype(np.float32)

    def ones(length: int) -> Array:
        return np.ones(length, np.float32)

    out = {"v.patch_embd.weight": some(WIDTH, 3, PATCH, PATCH), "v.position_embd.weight": some(TOKENS + 1, WIDTH)}
    out |= {"v.class_embd": some(WIDTH), "v.pre_ln.weight": ones(WIDTH), "v.pre_ln.bias": some(WIDTH)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        out |= {f"v.blk.0.{name}.weight": some(WIDTH, WIDTH), f"v.blk.0.{name}.bias": some(WIDTH)}
    for name in ("ln1", "ln2"):
        out |= {f"v.blk.0.{name}.weight": ones(WIDTH), f"v.blk.0.{name}.bias": some(WIDTH)}
    out |= {"v.blk.0.ffn_up.weight": some(FEED, WIDTH), "v.blk.0.ffn_up.bias": some(FEED)}
    out |= {"v.blk.0.ffn_down.weight": some(WIDTH, FEED), "v.blk.0.ffn_down.bias": some(WIDTH)}
    out |= {"mm.0.weight": some(embedding_length, WIDTH), "mm.0.bias": some(embedding_length)}
    return out | {"mm.2.weight": some(embedding_length, embedding_length), "mm.2.bias": some(embedding_length)}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value
