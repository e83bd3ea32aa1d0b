"""A real LLM server: llama.cpp over a random model of about 100 kB that is written here.

The model has one layer and a byte vocabulary. Only letters and the space get output weights, so an answer always runs
to its limit: its usage is genuine and its length known.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, FEED_FORWARD, HEADS, CONTEXT = 32, 64, 2, 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def write_model(path: Path, *, seed: int = 11) -> Path:
    """Write the model file."""
    rng = np.random.default_rng(seed)
    letters = byte_alphabet()
    # llama.cpp wants at least one merge.
    merged = letters[ord(" ")] + letters[ord("t")]
    tokens = [*letters, merged, *SPECIAL]
    end, _, turn_end = range(len(tokens) - 3, len(tokens))

    def weights(*shape: int) -> Any:
        return rng.normal(0.0, 0.5, shape).astype(np.float32)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3] * 3)
    writer.add_token_merges([f"{letters[ord(' ')]} {letters[ord('t')]}"])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(turn_end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    output = np.zeros((len(tokens), WIDTH), np.float32)
    for byte in b"abcdefghijklmnopqrstuvwxyz ":
        output[byte] = weights(WIDTH)
    tensors = {
        "token_embd": weights(len(tokens), WIDTH),
        "output_norm": np.ones(WIDTH, np.float32),
        "output": output,
        "blk.0.attn_norm": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm": np.ones(WIDTH, np.float32),
        **{f"blk.0.attn_{part}": weights(WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": weights(FEED_FORWARD, WIDTH),
        "blk.0.ffn_up": weights(FEED_FORWARD, WIDTH),
        "blk.0.ffn_down": weights(WIDTH, FEED_FORWARD),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def start(*, parallel: int = 4, cache_prompt: bool = False) -> Any:
    """Start the server on a free loopback port; keep the result, it stops with it. `.listening_address` is its URL."""
    import xllamacpp  # noqa: PLC0415 - a large extension, only where the server is used

    params = xllamacpp.CommonParams()
    params.model.path = str(write_model(Path(tempfile.mkdtemp(prefix="tinyllm-")) / "tiny.gguf"))
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.model_alias = {"tiny"}
    params.n_parallel = parallel
    params.n_ctx = CONTEXT * parallel
    params.n_predict = 64
    params.n_gpu_layers = 0
    params.warmup = False
    params.use_jinja = True
    params.verbosity = 0
    params.cache_prompt = cache_prompt
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)
