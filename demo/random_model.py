"""Makes the models: a configuration and a tokenizer, no weights. Run in the engine's environment.

The engine fills them with random weights (``--load-format dummy``), so the text is random at a realistic
cost. A step of the tiny model takes less time than the work around it. A step of the small model takes 12 to
16 ms on one core, depending on the batch. So a measurement is of the engine, as on an accelerator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

VOCABULARY = 512
CONTEXT = 4096
_TEXT = (
    "Many tenants share one model; each is entitled to a part of it, and none may take another's. "
    "The proxy counts tokens, the cache that they fill and the sequences that run, and what is free is lent. "
)
_TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6},
}
CONFIGURATION = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
ENCODER = "encoder"
"""An embedding model without a KV cache. vLLM on a CPU needs heads of at least 32 dimensions."""
ENCODER_CONFIGURATION = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def make(home: Path, model: str) -> None:
    """Write the folder of a model: one of ``SIZES``, or ``ENCODER``."""
    # Only the engine's environment has these.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 50, trainer)
    home.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(home)
    configuration = ENCODER_CONFIGURATION if model == ENCODER else CONFIGURATION | SIZES[model]
    (home / "config.json").write_text(json.dumps(configuration, indent=2))


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
