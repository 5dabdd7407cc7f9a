"""Sequence classification with a model of transformers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# transformers reads this when it is imported. Without it, tokenizers would use all cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
import transformers

from soupray.core.errors import ConfigError, one_line
from soupray.core.ports import Origin
from soupray.core.texts import are_pairs, unpack, unpack_pairs
from soupray.spec.task import TransformersSpec
from soupray.store.weights_file import Weights, write_weights
from soupray.tasks.examples import transformers_example
from soupray.tasks.files import PACKAGE, local_path, not_reached
from soupray.tasks.foreign import (
    NOT_WEIGHTS,
    ForeignWeights,
    in_order,
    matched,
    renamed,
    separate,
    unwrapped,
)
from soupray.tasks.origin import folder_origin, hub_origin

BODY, HEAD = "body.", "head."
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""Code in the folder of a model is refused. By default transformers would ask at the terminal."""


class TextClassifier(torch.nn.Module):
    """logits = head(features).

    Inputs are int64 [N, T] (token ids, padded with `pad`), features [N, D], logits [N, C]. Without
    a head for classes logits are the features. Pairs of texts, [N, 2, T], have the features of
    both, [N, 2 D].
    """

    def __init__(
        self, body: torch.nn.Module, head: torch.nn.Module, spec: TransformersSpec, pad: int
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._pooling, self._normalise, self._pad = spec.pooling, spec.normalise, pad

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features [N, D] of inputs [N, T], of length one if the spec has `normalise`."""
        if inputs.ndim == 3:
            return self.features(inputs.flatten(0, 1)).view(len(inputs), -1)
        mask = (inputs != self._pad).to(torch.int64)
        found = self.body(input_ids=inputs, attention_mask=mask)
        if self._pooling == "own":  # a classifier of transformers without its last layer
            pooled: torch.Tensor = found.logits
        elif self._pooling == "cls":
            pooled = found.last_hidden_state[:, 0]
        else:
            share = mask.to(found.last_hidden_state.dtype)[..., None]
            pooled = (found.last_hidden_state * share).sum(1) / share.sum(1).clamp_min(1)
        return F.normalize(pooled, dim=-1) if self._normalise else pooled

    def between(self, two: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Logits [P, C] along the line between the embeddings of the tokens of two texts.

        A position where only one text has a token is mixed with padding, and is not masked: the
        ends of the line are the two texts with room for one another. Positions after the longer
        text are not computed: they are masked and change nothing.

        Args:
            two: token ids of both, [2, T].
            share: of the second text, at each point, [P].
        """
        table = self.body.get_input_embeddings()  # type: ignore[operator]
        used = (two != self._pad).any(dim=0).nonzero()
        two = two[:, : int(used.max()) + 1 if len(used) else 1]
        ends, weights = table(two), share.to(two.device).view(-1, 1, 1)
        line = (1 - weights) * ends[0] + weights * ends[1]
        seen = torch.where(two[0] == self._pad, two[1], two[0]).expand(len(share), -1)
        hook = table.register_forward_hook(lambda module, inputs, output: line)
        try:
            return self(seen)  # type: ignore[no-any-return]
        finally:
            hook.remove()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] of inputs [N, T]."""
        logits: torch.Tensor = self.head(self.features(inputs))
        return logits


class TextTask:
    """Fine-tunes a text model end to end, from a zero-shot head, a probe or a random head."""

    def __init__(self, spec: TransformersSpec) -> None:
        self._spec, self._embeds = spec, spec.outputs == "embeddings"
        self._source = str(local_folder(spec.model) or spec.model)
        with _explained(spec):
            self._config = transformers.AutoConfig.from_pretrained(self._source, **NO_CODE)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                self._source, **NO_CODE
            )
        self.tokenizer.padding_side = "right"
        self._last_layer = "classifier"  # `_take_last_layer` may find another name
        if self.tokenizer.pad_token_id is None:
            raise ConfigError(
                f"task.model = {spec.model!r}: its tokenizer has no padding token. Without one, "
                "texts cannot be padded to one length. Choose another model."
            )
        outline = self._outline()
        if spec.pooling == "own" and outline is not None:
            _take_last_layer(outline, len(spec.classes))  # refused here, before anything is stored
        limit = _most_tokens(self._config, outline)
        if limit is not None and spec.max_tokens > limit:
            raise ConfigError(
                f"task.max_tokens = {spec.max_tokens}: {spec.model} reads at most {limit}."
            )

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens that `inputs` keeps of a text."""
        return self._spec.max_tokens

    @property
    def width(self) -> int:
        """The length of an embedding."""
        return int(self._config.hidden_size)

    def model(self) -> TextClassifier:
        """A new body with a head. The values of its weights are not defined."""
        return self._classifier(pretrained=False)

    def init(self) -> dict[str, torch.Tensor]:
        """The pre-trained body with a head: zero-shot if there are templates, random, or none."""
        model = self._classifier(pretrained=True)
        self._refuse_unreadable(model)
        if self._spec.templates:
            assert isinstance(model.head, torch.nn.Linear)
            model.head.weight.data = self._zero_shot_head(model)
        return separate(model.state_dict())

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Token ids, int64 [N, max_tokens], of texts [N, L]. Longer texts are cut.

        Of pairs of texts [N, 2, max_tokens].
        """
        rows = samples.cpu().numpy()
        if self._embeds and are_pairs(rows):
            both = [self._tokens(texts) for texts in unpack_pairs(rows)]
            return torch.stack(both, dim=1).to(samples.device)
        return self._tokens(unpack(rows)).to(samples.device)

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, before anything is cut."""
        return [len(ids) for ids in self.tokenizer(texts)["input_ids"]]

    def refuse_long(self, split: str, samples: torch.Tensor) -> None:
        """Refuse texts that `inputs` would cut.

        Args:
            split: its name, for the message.
            samples: texts, uint8 [N, L].

        Raises:
            ConfigError: a text has more than `max_tokens` tokens.
        """
        rows, limit = samples.numpy(), self._spec.max_tokens
        both = unpack_pairs(rows) if self._embeds else (unpack(rows),)
        texts = [text for side in both for text in side]
        lengths = self.lengths(texts)
        longest = max(range(len(texts)), key=lambda i: lengths[i])
        if lengths[longest] > limit:
            raise ConfigError(
                f"{split}: {sum(n > limit for n in lengths)} of {len(texts)} texts have more than "
                f"task.max_tokens = {limit} tokens, the longest {lengths[longest]}: "
                f"{texts[longest][:60]!r}. Raise it, or write data.on_long: cut."
            )

    def adopt(self, weights: Weights, where: str, named: Sequence[str] | None = None) -> Weights:
        """Convert a classifier of transformers, or a sentence encoder.

        A sentence encoder gets the zero-shot head that it makes from the spec's prompts.

        Args:
            weights: the checkpoint.
            where: the file that error messages name.
            named: names of the classes of its head, in the order of the rows; None if unknown.

        Raises:
            IncompatibleWeights: a tensor or the classes do not fit.
        """
        model = self.model()
        found = unwrapped(weights)
        if not any(name.startswith(BODY) for name in found):
            found = renamed(self._in_memory(found), self._our_name)
        found = in_order(found, named, self._spec.classes, where)
        # Positions are no weights, and `unwrapped` left them out: all models count from 0.
        found |= {n: t for n, t in model.state_dict().items() if n.endswith(NOT_WEIGHTS)}
        if "head.weight" not in found and self._spec.templates:
            body = ForeignWeights({n.removeprefix(BODY): t for n, t in found.items()}, where)
            model.body.load_state_dict(matched(body, model.body))
            found["head.weight"] = self._zero_shot_head(model)
        return matched(ForeignWeights(found, where), model)

    def _in_memory(self, found: Weights) -> Weights:
        """The tensors under the names that they have in a model, from those in a file.

        For some architectures transformers writes other ones: experts that are one tensor in a
        model are a tensor each in a file. What transformers cannot convert keeps its name.
        """
        _, more = self._kind()
        head = {name: t for name, t in found.items() if name.startswith(HEAD)}
        theirs = {name: t for name, t in found.items() if name not in head}
        outline = self._outline()
        if outline is None or theirs.keys() <= outline.state_dict().keys():
            return found
        config = copy.deepcopy(self._config)
        config.num_labels = more.pop("num_labels", config.num_labels)
        try:
            with _quiet():
                made: Any = type(outline)
                whole, report = made.from_pretrained(
                    None, config=config, state_dict=theirs, output_loading_info=True, **more
                )
        except (RuntimeError, ValueError, KeyError):  # shapes that do not fit: `matched` names one
            return found
        if report["unexpected_keys"] or report["mismatched_keys"]:
            return found
        drawn = set(report["missing_keys"])
        return {n: t for n, t in whole.state_dict().items() if n not in drawn} | head

    def write_files(self, folder: Path) -> None:
        """Write the configuration and the tokenizer, as transformers writes them.

        Args:
            folder: where the files go.
        """
        with _quiet():
            self._config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def export(self, weights: Weights, folder: Path) -> str:
        """Write a folder as transformers writes it, with the tokenizer.

        With `pooling: own`, the model in the folder is a classifier with the head. Otherwise it is
        the body, and the head is in a file of its own, head.safetensors. config.json has the names
        of the classes. A model of embeddings is the body alone.

        Args:
            weights: a full state dict of `model()`.
            folder: where the files go.

        Returns:
            A Python expression that loads the model with transformers.
        """
        kind, more = self._kind()
        self.model()  # it finds the names of the layers, which `_our_name` needs
        with _explained(self._spec), _quiet():
            whole = kind.from_pretrained(self._source, ignore_mismatched_sizes=True, **more)
        named = {self._our_name(name): name for name in whole.state_dict()}
        theirs = {named[name]: t for name, t in weights.items() if name in named}
        assert all(n in named for n in weights if n.startswith(BODY)), "a tensor without a place"
        whole.load_state_dict(whole.state_dict() | theirs)
        if self._spec.pooling == "own":  # GPT-2 finds the last token by it
            whole.config.pad_token_id = self.tokenizer.pad_token_id
            whole.config.problem_type = "single_label_classification"
        if not self._embeds:
            whole.config.id2label = dict(enumerate(self._spec.classes))
            whole.config.label2id = {name: i for i, name in enumerate(self._spec.classes)}
        with _quiet():
            whole.save_pretrained(folder)
        self.save_tokenizer(folder)
        if self._spec.pooling != "own" and not self._embeds:
            head = {n.removeprefix(HEAD): t for n, t in weights.items() if n.startswith(HEAD)}
            write_weights(folder / "head.safetensors", head, {})
        return f"transformers.{kind.__name__}.from_pretrained({str(folder)!r})"

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the tokenizer. It cuts texts to the spec's `max_tokens`, if it cuts.

        Args:
            folder: where the files go.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self._spec.max_tokens
        with _quiet():
            tokenizer.save_pretrained(folder)

    def example(self) -> str:
        """Code for the classifier of transformers, or for its body and the head."""
        return transformers_example(self._kind()[0].__name__, self._spec)

    def origin(self) -> Origin:
        """The folder, or the model of the hub, that the spec names."""
        folder = local_folder(self._spec.model)
        if folder is not None:
            return folder_origin(self._spec.model, folder)
        return hub_origin(self._spec.model, self._spec.model)

    def _outline(self) -> torch.nn.Module | None:
        """The model without the values of its weights, made in no time.

        None: its constructor needs values.
        """
        kind, more = self._kind()
        config = copy.deepcopy(self._config)
        config.num_labels = more.pop("num_labels", config.num_labels)
        try:
            with _quiet(), torch.device("meta"):
                made: torch.nn.Module = kind.from_config(config, **more)
        except (RuntimeError, ValueError, KeyError):  # or `_explained` says it in `model`
            return None
        return made

    @torch.inference_mode()
    def _refuse_unreadable(self, model: TextClassifier) -> None:
        """Refuse a model that cannot read a text alone, as T5 without its classifier.

        Raises:
            ConfigError: the message repeats what transformers says.
        """
        try:
            model.eval().features(self._tokens(["a"]))
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"task.model = {self._spec.model!r}, pooling = {self._spec.pooling}: "
                f"{type(model.body).__name__} cannot make features of a text: {one_line(error)} "
                "Write another pooling, or name another model."
            ) from error

    def _our_name(self, name: str) -> str | None:
        """The name in soupray of a tensor of transformers. None: this model does not use it."""
        layer, _, kind = name.rpartition(".")
        if layer in (self._last_layer, "classifier", "head"):
            return f"{HEAD}{kind}"
        if self._spec.pooling == "own":
            return f"{BODY}{name}"
        name = name.removeprefix(f"{self._base}.")
        return None if name.startswith("pooler.") else f"{BODY}{name}"

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        # All batches have one shape, because the shape of an input changes low bits of the logits.
        tokens: torch.Tensor = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self._spec.max_tokens,
            return_tensors="pt",
        )["input_ids"]
        return tokens

    @torch.inference_mode()
    def _zero_shot_head(self, model: TextClassifier) -> torch.Tensor:
        """The zero-shot head [C, D] as in WiSE-FT.

        A row is the mean of the features of a class's prompts, normalised and multiplied by
        `scale`.
        """
        model.eval()
        rows = []
        for name in self._spec.classes:
            prompts = [template.format(name) for template in self._spec.templates]
            rows.append(F.normalize(model.features(self._tokens(prompts)).mean(dim=0), dim=-1))
        return (torch.stack(rows) * self._spec.scale).clone()

    def _classifier(self, pretrained: bool) -> TextClassifier:
        body, classes = self._body(pretrained), len(self._spec.classes)
        self._base = body.base_model_prefix
        if self._spec.pooling == "own":
            body.config.pad_token_id = self.tokenizer.pad_token_id
            self._last_layer, head = _take_last_layer(body, classes)
        else:
            if getattr(body, "pooler", None) is not None:
                body.pooler = None  # the features do not use it, so that nothing would train it
            if self._embeds:
                return TextClassifier(
                    body, torch.nn.Identity(), self._spec, self.tokenizer.pad_token_id
                )
            # As in open_clip, a head that can be zero-shot has no bias.
            head = torch.nn.Linear(self._config.hidden_size, classes, not self._spec.templates)
        return TextClassifier(body, head, self._spec, self.tokenizer.pad_token_id)

    def _kind(self) -> tuple[Any, dict[str, Any]]:
        """The class of transformers, and the arguments with which its models are made."""
        # Eager attention is the plain formula. It chooses no kernel, so that runs are repeatable.
        more: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32, **NO_CODE}
        if self._spec.pooling == "own":
            more["num_labels"] = len(self._spec.classes)
            return transformers.AutoModelForSequenceClassification, more
        return transformers.AutoModel, more

    def _body(self, pretrained: bool) -> Any:
        kind, more = self._kind()
        with _explained(self._spec), _quiet():
            config = transformers.AutoConfig.from_pretrained(self._source, **NO_CODE)
            if not pretrained:
                if "num_labels" in more:
                    config.num_labels = more.pop("num_labels")
                return kind.from_config(config, **more)
            more |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            body, report = kind.from_pretrained(self._source, **more)
        _refuse_partial(body, report, self._spec)
        return body


def _most_tokens(config: Any, outline: torch.nn.Module | None) -> int | None:
    """The number of tokens that a model reads at most. None: it has no limit.

    T5 has no positions in its config, and XLNet has -1 there. RoBERTa and its relatives give a
    padding token the position of its id, and begin to count after it: of 514 positions, 512 are for
    tokens.
    """
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return None
    modules = dict(outline.named_modules()) if outline is not None else {}
    first = [
        module.padding_idx + 1
        for name, module in modules.items()
        if name.endswith("position_embeddings")
        and isinstance(getattr(module, "padding_idx", None), int)
    ]
    return said - max(first, default=0)


def _refuse_partial(body: Any, report: dict[str, Any], spec: TransformersSpec) -> None:
    """Refuse weights that do not fit. transformers would draw random ones, with only a warning."""

    def needed(name: str) -> bool:  # the weights may lack a pooler and a classifier
        inside = spec.pooling != "own" or name.startswith(f"{body.base_model_prefix}.")
        return inside and "pooler." not in name

    problems = [f"{name!r} is missing" for name in report["missing_keys"] if needed(name)]
    problems += [
        f"{name!r} is {list(theirs)} and should be {list(ours)}"
        for name, theirs, ours in report["mismatched_keys"]
        if needed(name)
    ]
    if problems:
        raise ConfigError(
            f"task.model = {spec.model!r}: its weights do not fit its config.json in "
            f"{len(problems)} tensors, the first: {min(problems)}. The two files are of different "
            "architectures. Put a matching pair into the folder."
        )


def _take_last_layer(body: torch.nn.Module, classes: int) -> tuple[str, torch.nn.Linear]:
    """Take the last linear layer off the body. The `logits` of the body are then the features.

    Returns:
        The name of the layer, and the layer.
    """
    linear = [(n, m) for n, m in body.named_modules() if isinstance(m, torch.nn.Linear)]
    # The order of the modules does not tell: CamemBERT has its classifier before its body.
    base = f"{getattr(body, 'base_model_prefix', '')}."
    outside = [(n, m) for n, m in linear if not n.startswith(base) and m.out_features == classes]
    name, head = (outside or linear)[-1]
    if head.out_features != classes:
        raise ConfigError(
            f"task.pooling = own: the last layer of {type(body).__name__}, {name!r}, does not make "
            "its logits. Write pooling: mean, or cls."
        )
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, torch.nn.Identity())
    return name, head


def local_folder(model: str) -> Path | None:
    """The folder that `model` names. None: it is the name of a model on the hub.

    Raises:
        ConfigError: it is a path, but there is no such folder.
    """
    folder = local_path(model)
    if folder.is_dir():
        return folder
    if model.startswith((PACKAGE, ".", "/", "~")):
        raise ConfigError(f"task.model = {model!r}: there is no folder {folder}.")
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings about weights: `_refuse_partial` checks the weights."""
    logging: Any = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _explained(spec: TransformersSpec) -> Iterator[None]:
    """Turn errors of transformers about a model into a ConfigError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = not_reached(error, "a folder, or package:NAME/FOLDER")
        why = why or (
            f"transformers cannot make it: {said} Name a folder, package:NAME/FOLDER, or a model "
            "on the hub."
        )
        raise ConfigError(f"task.model = {spec.model!r}: {why}") from error
