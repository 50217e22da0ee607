"""Build the byte-level BPE tokenizer of cria and its chat template."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from cria import passkey, shapes, smalltalk, stories
from cria.config import TEXT

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"


def split_pattern(digits: str) -> str:
    """Write the pre-tokenizer pattern of Llama 4 with its digit repetition as a parameter."""
    return "|".join(
        (
            rf"{_PREFIX}[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}",
            rf"{_PREFIX}[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}",
            rf"\p{{N}}{digits}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim if message['role'] == 'system' else message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""


def _corpus(rng: np.random.Generator, documents: int):
    """Yield training text of every kind."""
    for _ in range(documents):
        yield stories.tell(rng)
        yield passkey.hide(rng, 60, lambda text: len(text.split()))[0]
        scene = shapes.draw_scene(rng)
        for kind in (*shapes.QUESTION_KINDS, "describe"):
            yield "\n".join(shapes.ask(rng, scene, kind, str(rng.choice(("", "first", "second")))))
        yield "\n\n".join(smalltalk.exchange(rng))
        yield "system\n\nuser\n\nassistant\n\n"


def build_tokenizer(documents: int = 3000, seed: int = 5) -> Tokenizer:
    """Train the merges; no merge joins two digits, so numbers are spelled digit by digit."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))

    def pre_tokenizer(digits: str):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split_pattern(digits)), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    tokenizer.pre_tokenizer = pre_tokenizer("")
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TEXT.vocab - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(np.random.default_rng(seed), documents), trainer)
    tokenizer.pre_tokenizer = pre_tokenizer("{1,3}")
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer


@lru_cache
def load_tokenizer(path: str) -> Tokenizer:
    """Load `tokenizer.json`, or build it there first."""
    file = Path(path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        build_tokenizer().save(str(file))
    return Tokenizer.from_file(str(file))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Map special token names to ids."""
    return {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}


def tokenizer_config() -> str:
    """Write `tokenizer_config.json`."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Llama4Processor",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|finetune_right_pad|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": TEXT.max_positions,
        "chat_template": CHAT_TEMPLATE,
    }
    return json.dumps(config, indent=2) + "\n"
