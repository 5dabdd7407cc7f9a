"""A tokenizer for a text tower whose embedding table has only the tokens of its prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from open_clip.tokenizer import SimpleTokenizer

from soupray.core.errors import ConfigError

PAD = 0  # the token with which open_clip pads a short prompt
_ABSENT = -1


def cut_vocabulary(texts: Sequence[str], context_length: int) -> list[int]:
    """The token ids that `texts` need, in ascending order: pad is first, end-of-text last.

    open_clip pads with id 0 and reads the feature of a text at its largest id. Both still hold for
    the new ids because the order is kept.

    Args:
        texts: the prompts.
        context_length: number of tokens that the text tower reads.

    Returns:
        Ids of the full tokenizer.
    """
    full = SimpleTokenizer(context_length=context_length)
    used = full(list(texts)).unique().tolist()
    return sorted({PAD, full.sot_token_id, full.eot_token_id, *used})


class CutTokenizer:
    """The tokenizer of open_clip, with new ids: the position of each token among the kept ones."""

    def __init__(self, full_token_ids: Iterable[int], context_length: int) -> None:
        """Keep some tokens.

        Args:
            full_token_ids: their ids in the full tokenizer, as `cut_vocabulary` returns them.
            context_length: number of tokens that the text tower reads.
        """
        kept = torch.tensor(sorted(full_token_ids))
        self._full = SimpleTokenizer(context_length=context_length)
        self._context_length = context_length
        self._rows = torch.full((self._full.vocab_size,), _ABSENT)
        self._rows[kept] = torch.arange(len(kept))

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.LongTensor:
        """The new token ids of texts, int64 [N, context_length].

        Args:
            texts: the prompts.
            context_length: of the result; None: as many tokens as the text tower reads.

        Raises:
            ConfigError: a text has a word outside the vocabulary, or is too long.
        """
        length = context_length or self._context_length
        for text in texts:
            self._check(text, length)
        return cast(torch.LongTensor, self._rows[self._full(texts, length)])

    def words(self) -> list[str]:
        """The tokens in the vocabulary as text, sorted. A word may consist of several tokens."""
        special = set(self._full.all_special_ids) | {PAD}
        kept = (self._rows != _ABSENT).nonzero().flatten().tolist()
        return sorted(self._full.decode([token]).strip() for token in kept if token not in special)

    def _check(self, text: str, most: int) -> None:
        length = 2  # start and end of text
        for word in self._full.pat.findall(self._full.clean_fn(text)):
            tokens = self._full.encode(word)
            if (self._rows[tokens] == _ABSENT).any():
                raise ConfigError(
                    f"The prompt {text!r} has the word {word!r}, which is not in the vocabulary of "
                    f"this model. Its words are: {', '.join(self.words())}."
                )
            length += len(tokens)
        if length > most:
            raise ConfigError(
                f"The prompt {text!r} has {length} tokens, start and end included; this model "
                f"reads at most {most}. Shorten it."
            )
