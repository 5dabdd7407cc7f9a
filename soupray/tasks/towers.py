"""Both towers of a CLIP of open_clip: embeddings of images and of their captions."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch

from soupray.core.arrays import Uint8
from soupray.core.captions import CHANNELS, are_captioned, unpack_captioned
from soupray.core.errors import ConfigError
from soupray.core.texts import unpack
from soupray.tasks.pixels import Pixels

CLIP = "clip."
"""Prefix of the names of all weights."""

NOT_SHARED = ("logit_scale", "logit_bias")
"""Numbers of the loss that a CLIP learns. Here the temperature is a hyperparameter, see
docs/decisions/0021-retrieval.md: they are no weights of a trial."""


class TwoTowers(torch.nn.Module):
    """Embeddings of length one: of images [N, D], of texts [N, D], or of pairs [N, 2 D].

    Images are float32 [N, 3, h, w]. Texts are token ids [N, T]. Pairs are int32 [N, T + 3 S S]:
    the tokens, then the pixels of an image of side S, from 0 to 255. They are normalised here, so
    that all numbers of an input are whole ones in every precision. The embedding of the image comes
    first.
    """

    def __init__(self, clip: Any, pixels: Pixels, tokens: int) -> None:
        super().__init__()
        for name in NOT_SHARED:
            setattr(clip, name, None)
        self.clip, self.head = clip, torch.nn.Identity()
        self._pixels, self._tokens = pixels, tokens

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """The embeddings of images, texts or pairs."""
        if inputs.ndim == 4:
            return self._images(inputs)
        texts: torch.Tensor = self.clip.encode_text(inputs[:, : self._tokens].long(), True)
        flat = inputs[:, self._tokens :]
        if not flat.shape[1]:
            return texts
        side = isqrt(flat.shape[1] // CHANNELS)
        images = self._pixels(flat.view(len(flat), CHANNELS, side, side))
        return torch.cat([self._images(images), texts], dim=1)

    def _images(self, inputs: torch.Tensor) -> torch.Tensor:
        dtype = next(self.clip.visual.parameters()).dtype
        found: torch.Tensor = self.clip.encode_image(inputs.to(dtype), True)
        return found

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The embeddings of images, texts or pairs."""
        return self.features(inputs)


class PairInputs:
    """Inputs of `TwoTowers` for the rows of the data cache."""

    def __init__(self, tokenizer: Any, pixels: Pixels) -> None:
        """Set the form of the inputs.

        Args:
            tokenizer: of open_clip: from texts to token ids.
            pixels: normalises images.
        """
        self._tokenizer, self._pixels = tokenizer, pixels
        self.tokens = int(tokenizer([""]).shape[1])

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Inputs for images [N, 3, H, W], texts [N, L], or images with captions [N, W]."""
        if samples.ndim == 4:
            return self._pixels(samples)
        rows = samples.cpu().numpy()
        if not are_captioned(rows):
            return self._tokenizer(unpack(rows)).to(samples.device, torch.int32)  # type: ignore[no-any-return]
        images, captions = unpack_captioned(rows)
        flat = torch.from_numpy(images.reshape(len(rows), -1))
        return torch.cat([self._tokenizer(captions).int(), flat.int()], dim=1).to(samples.device)

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, before anything is cut.

        Raises:
            ConfigError: a text has a word that a small vocabulary does not have.
        """
        most = max((len(text.encode()) for text in texts), default=0) + 8  # a token has a byte
        padding = self._tokenizer([""], most)[0, -1]
        rows = self._tokenizer(texts, most)
        return [int((row != padding).nonzero().max()) + 1 for row in rows]

    def long(self, split: str, rows: Uint8, cuts: bool) -> list[str]:
        """What is to be said of captions that the text tower would read in part.

        Args:
            split: its name, for the message.
            rows: images with captions, [N, W].
            cuts: they may be cut.

        Raises:
            ConfigError: a caption has more tokens than the text tower reads, and is not to be cut.
        """
        _, captions = unpack_captioned(rows)
        lengths = self.lengths(captions)
        count, longest = sum(length > self.tokens for length in lengths), max(lengths)
        if count and not cuts:
            raise ConfigError(
                f"{split}: {count} of {len(rows)} captions have more than the {self.tokens} tokens "
                f"that this model reads, the longest {longest}: "
                f"{captions[lengths.index(longest)][:60]!r}. Shorten them, or write data.on_long: "
                "cut."
            )
        said = (
            f"{count} of {len(rows)} captions of the {split} split are cut to {self.tokens} tokens"
        )
        return [said] * (count > 0) + self._alike(split, captions)

    def _alike(self, split: str, captions: list[str]) -> list[str]:
        """How many captions the text tower cannot tell from another one: no query finds them.

        Ties count against a model. Case and spaces, for example, are no part of the tokens of CLIP.

        Raises:
            ConfigError: a caption has no tokens.
        """
        first: dict[bytes, str] = {}
        same: dict[str, str] = {}
        rows = [row.numpy().tobytes() for row in self._tokenizer(["", *captions])]
        for row, caption in zip(rows[1:], captions, strict=True):
            if row == rows[0]:
                raise ConfigError(
                    f"{split}: the caption {caption[:60]!r} has no tokens for this model. Write "
                    "words, or remove that line."
                )
            if first.setdefault(row, caption) != caption:
                same[caption] = first[row]
        if not same:
            return []
        one, other = next(iter(same.items()))
        return [
            f"{len(same)} of {len(set(captions))} different captions of the {split} split have "
            f"the tokens of another one ({one[:40]!r}, {other[:40]!r}): no model finds them"
        ]
