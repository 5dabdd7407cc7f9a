"""A tokenizer for a text tower whose embedding table holds only the prompts' tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from open_clip.tokenizer import SimpleTokenizer

from soupray.core.errors import ConfigError

PAD = 0  # what open_clip fills a short prompt with
_ABSENT = -1


def cut_vocabulary(texts: Sequence[str], context_length: int) -> list[int]:
    """Ids of the full tokenizer that `texts` need, ascending: pad first, end-of-text last.

    The order is what makes the cut invisible to open_clip: it pads with 0 and reads the text's
    feature at the largest id.
    """
    full = SimpleTokenizer(context_length=context_length)
    used = full(list(texts)).unique().tolist()
    return sorted({PAD, full.sot_token_id, full.eot_token_id, *used})


class CutTokenizer:
    """open_clip's tokenizer, whose ids are then numbered by their place among the kept ones."""

    def __init__(self, full_token_ids: Iterable[int], context_length: int) -> None:
        kept = torch.tensor(sorted(full_token_ids))
        self._full = SimpleTokenizer(context_length=context_length)
        self._context_length = context_length
        self._rows = torch.full((self._full.vocab_size,), _ABSENT)
        self._rows[kept] = torch.arange(len(kept))

    def __call__(self, texts: list[str]) -> torch.LongTensor:
        """Rows of the cut embedding table, [len(texts), context_length] int64.

        Raises:
            ConfigError: a word outside the vocabulary, or a text that would be truncated.
        """
        for text in texts:
            self._check(text)
        return cast(torch.LongTensor, self._rows[self._full(texts)])

    def words(self) -> list[str]:
        """The allowed words, sorted; a word of several tokens appears as its pieces."""
        special = set(self._full.all_special_ids) | {PAD}
        kept = (self._rows != _ABSENT).nonzero().flatten().tolist()
        return sorted(self._full.decode([token]).strip() for token in kept if token not in special)

    def _check(self, text: str) -> None:
        length = 2  # start and end of text
        for word in self._full.pat.findall(self._full.clean_fn(text)):
            tokens = self._full.encode(word)
            if (self._rows[tokens] == _ABSENT).any():
                raise ConfigError(
                    f"The prompt {text!r} has the word {word!r}, which this model never learnt. "
                    f"Its words are: {', '.join(self.words())}."
                )
            length += len(tokens)
        if length > self._context_length:
            raise ConfigError(
                f"The prompt {text!r} has {length} tokens, start and end included; this model "
                f"reads at most {self._context_length}. Shorten it."
            )
