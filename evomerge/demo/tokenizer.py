"""The tokenizer of the embedded models: one token a character, in Hugging Face format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from evomerge.demo.skills import CHARACTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(4)
VOCABULARY: Final[dict[str, int]] = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: it puts ``<s>`` before a text, and pads on the left for generation."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=SPECIAL_TOKENS[UNKNOWN]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        unk_token=SPECIAL_TOKENS[UNKNOWN],
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
