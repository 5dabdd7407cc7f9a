"""Image classification with a model of the user's own: a function that returns an `nn.Module`."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from soupray.core.errors import ConfigError
from soupray.core.plugins import load, raised
from soupray.core.ports import Origin
from soupray.spec.plugged_in import TASKS
from soupray.spec.task import TorchSpec
from soupray.store.weights_file import Weights, write_weights
from soupray.tasks.examples import torch_example
from soupray.tasks.files import local_path
from soupray.tasks.foreign import (
    ForeignWeights,
    in_order,
    leave_out_batch_counts,
    load_foreign,
    matched,
    renamed,
    separate,
    unwrapped,
)
from soupray.tasks.heads import HEAD, Classifier, Masks
from soupray.tasks.pixels import Pixels

BODY = "body."
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class TorchTask:
    """Trains a module of the user end to end, from pre-trained or from random weights."""

    def __init__(self, spec: TorchSpec) -> None:
        self._spec = spec
        self.pixels = Pixels((spec.size, spec.size), spec.mean, spec.std)
        self._found = load(TASKS, spec.model)
        self._where = f"task.model = {spec.model!r} ({self._found.origin})"
        # The model is made here, so that an error is reported before anything is stored.
        self._last = None if spec.outputs == "masks" else self._last_linear()
        if self._last is None:
            self._check_masks()
        self._names = frozenset(self.model().state_dict())

    def model(self) -> Classifier | Masks:
        """A new model. The values of its weights are not defined."""
        body = self._made()
        if self._last is None:
            masks = Masks(body)
            leave_out_batch_counts(masks)
            return masks
        place, _, name = self._last.rpartition(".")
        head = body.get_submodule(self._last)
        assert isinstance(head, torch.nn.Linear)
        setattr(body.get_submodule(place), name, torch.nn.Identity())
        model = Classifier(body, head)
        leave_out_batch_counts(model)
        return model

    def init(self) -> dict[str, torch.Tensor]:
        """Pre-trained weights if the spec names them, with the new head that the function makes."""
        model = self.model()
        drawn = separate(model.state_dict())
        if self._spec.pretrained is None:
            return drawn
        path = local_path(self._spec.pretrained)
        theirs = self._ours(load_foreign(path))
        body = {n: t for n, t in theirs.items() if not n.startswith(HEAD)}
        head = {n: t for n, t in drawn.items() if n.startswith(HEAD)}
        return matched(ForeignWeights(body | head, str(path)), model)

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        """Resize and normalise images: [N, 1 or C, H, W] to float32 [N, C, size, size]."""
        return self.pixels(samples)

    def adopt(self, weights: Weights, where: str, named: Sequence[str] | None = None) -> Weights:
        """Convert a state dict of the user's module.

        Args:
            weights: the checkpoint.
            where: the file that error messages name.
            named: names of the classes of its head, in the order of the rows; None if unknown.

        Raises:
            IncompatibleWeights: a tensor or the classes do not fit.
        """
        found = in_order(self._ours(weights), named, self._spec.classes, where)
        return matched(ForeignWeights(found, where), self.model())

    def write_files(self, folder: Path) -> None:
        """Write nothing: the code is where the spec says."""

    def export(self, weights: Weights, folder: Path) -> str:
        """Write model.safetensors, with the names of the user's module, and config.json.

        Args:
            weights: a full state dict of `model()`.
            folder: where the files go.

        Returns:
            A Python expression that loads the weights from `folder`.
        """
        spec = self._spec
        last = self._last
        head = {f"{HEAD}{kind}": f"{last}.{kind}" for kind in ("weight", "bias") if last}
        theirs = renamed(weights, lambda name: head.get(name, name.removeprefix(BODY)))
        # The module has counters in its BatchNorm layers, which soupray leaves out.
        write_weights(folder / WEIGHTS, separate(self._made().state_dict() | theirs), {})
        config = {
            "model": spec.model,
            "args": self._arguments(),
            "label_names": list(spec.classes),
            "size": spec.size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "resize": spec.resize,
            "crop": spec.crop,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        return f"safetensors.torch.load_file({str(folder / WEIGHTS)!r})"

    def example(self) -> str:
        """Code that makes the module again, with the weights and one input."""
        return torch_example(self._spec)

    def origin(self) -> Origin | None:
        """The file of the spec; its licence is not known."""
        return Origin(name=self._spec.pretrained) if self._spec.pretrained else None

    def _ours(self, weights: Weights) -> Weights:
        """The tensors under soupray's names, from soupray's names or the module's."""
        found = unwrapped(weights)
        # The user's module may have parts called body and head too: then all names decide.
        return found if self._names >= found.keys() else self._renamed(found)

    def _renamed(self, weights: Weights) -> Weights:
        """The tensors of the user's module under soupray's names."""
        last = f"{self._last}."
        if self._last is None:
            return renamed(weights, lambda n: f"{BODY}{n}")
        return renamed(
            weights,
            lambda n: f"{HEAD}{n.removeprefix(last)}" if n.startswith(last) else f"{BODY}{n}",
        )

    def _arguments(self) -> dict[str, Any]:
        """The keyword arguments of the user's function."""
        given: dict[str, Any] = dict(self._spec.args)
        try:
            parameters = inspect.signature(self._found.value).parameters.values()
        except (TypeError, ValueError):  # code without a signature, or no function
            return given
        if any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters):
            given.setdefault("num_classes", len(self._spec.classes))
        return given

    def _made(self) -> torch.nn.Module:
        try:
            made = self._found.value(**copy.deepcopy(self._arguments()))
        except Exception as error:
            raise ConfigError(f"{self._where}: {raised(error)}.") from error
        if not isinstance(made, torch.nn.Module):
            raise ConfigError(
                f"{self._where} returned {type(made).__name__}, not a torch.nn.Module."
            )
        return made

    @torch.no_grad()
    def _last_linear(self) -> str:
        """The name of the linear layer whose output is that of the module.

        Raises:
            ConfigError: there is none, or the module is another function without it, or its outputs
                are not one number for each class.
        """
        spec, module = self._spec, self._made().eval()
        self._refuse_tensors(module)
        inputs = 2 * torch.rand(2, len(spec.mean), spec.size, spec.size) - 1
        outputs: dict[str, Any] = {}
        hooks = [
            layer.register_forward_hook(_keeping(outputs, name))
            for name, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear) and name
        ]
        logits = self._run(module, inputs)
        for hook in hooks:
            hook.remove()
        wanted = [2, len(spec.classes)]
        if list(logits.shape) != wanted:
            raise ConfigError(
                f"{self._where}: for inputs {list(inputs.shape)} its outputs are "
                f"{list(logits.shape)}, not {wanted}: one logit for each of the "
                f"{len(spec.classes)} classes. A parameter num_classes gets their number."
            )
        last = next((name for name, out in outputs.items() if out is logits), None)
        if last is None or not _is_plain(module.get_submodule(last)):
            raise ConfigError(
                f"{self._where}: its outputs are not those of a linear layer (nn.Linear), the last "
                "one. Without such a head there is no linear probe, and no features for VRF. "
                "Return the logits of the last layer as they are: no softmax, no scale, no "
                "weight_norm."
            )
        self._last = last
        whole, parts = module.state_dict(), self.model().eval()
        _take(parts, self._renamed(unwrapped(whole)))
        again = self._run(parts, inputs)
        if not torch.equal(logits, again):
            raise ConfigError(
                f"{self._where}: without its last layer {last!r} the module computes something "
                f"else (outputs differ by up to {float((logits - again).abs().max()):.3g}). Call "
                "that layer once, as the last step of forward, and nowhere else; draw nothing at "
                "random in eval mode."
            )
        self._run(module.train(), inputs, " in training mode")
        return last

    @torch.no_grad()
    def _check_masks(self) -> None:
        """Refuse (ConfigError) a module whose outputs are no masks of the size of its inputs."""
        spec, module = self._spec, self._made().eval()
        self._refuse_tensors(module)
        inputs = 2 * torch.rand(2, len(spec.mean), spec.size, spec.size) - 1
        masks = self._run(module, inputs)
        side = [spec.size, spec.size]
        if list(masks.shape) not in ([2, *side], [2, 1, *side]):
            raise ConfigError(
                f"{self._where}: for inputs {list(inputs.shape)} its outputs are "
                f"{list(masks.shape)}, not {[2, 1, *side]}: with objective: segmentation a logit "
                "for each pixel. Resize smaller masks in forward (torch.nn.functional.interpolate)."
            )
        if not torch.equal(masks, self._run(module, inputs)):
            raise ConfigError(
                f"{self._where}: in eval mode, two runs on the same inputs differ: draw nothing "
                "at random there."
            )
        self._run(module.train(), inputs, " in training mode")

    def _refuse_tensors(self, module: torch.nn.Module) -> None:
        """Refuse tensors without a shape, complex ones, and those of a module made before.

        Raises:
            ConfigError: there is such a tensor.
        """
        tensors = [*module.named_parameters(), *module.named_buffers()]
        for name, tensor in tensors:
            if is_lazy(tensor):
                raise ConfigError(
                    f"{self._where}: the tensor {name!r} has no shape before the first input "
                    "(LazyLinear, LazyConv2d). Write the number of its inputs, or call the module "
                    "once before it is returned."
                )
            if tensor.is_complex():
                raise ConfigError(
                    f"{self._where}: the tensor {name!r} is complex. Weights are real numbers: "
                    "store both parts (torch.view_as_real), and join them in forward."
                )
        other = self._made()
        theirs = {id(tensor) for tensor in (*other.parameters(), *other.buffers())}
        if same := next((name for name, tensor in tensors if id(tensor) in theirs), None):
            raise ConfigError(
                f"{self._where}: two calls return one and the same tensor {same!r}. Make a new "
                "module in each call: several models are in memory at a time."
            )

    def _run(self, module: torch.nn.Module, inputs: torch.Tensor, mode: str = "") -> torch.Tensor:
        given = inputs.clone()
        try:
            outputs = module(given)
        except Exception as error:
            raise ConfigError(
                f"{self._where}: for float32 inputs {list(inputs.shape)} it raised{mode} "
                f"{raised(error)}."
            ) from error
        if not isinstance(outputs, torch.Tensor):
            raise ConfigError(
                f"{self._where}: forward returned{mode} {type(outputs).__name__}, not a tensor of "
                f"logits [N, classes].{_ONE_OUTPUT if mode else ''}"
            )
        if not torch.equal(given, inputs):
            raise ConfigError(
                f"{self._where}: forward changes its inputs{mode}, which others read too. Leave "
                "operations in place (x.sub_, x += ..., ReLU(inplace=True)) out of its first step."
            )
        if not torch.isfinite(outputs).all():
            raise ConfigError(
                f"{self._where}: its outputs are{mode} NaN or infinite for inputs from -1 to 1."
            )
        return outputs


_ONE_OUTPUT = " Leave auxiliary outputs out, as with aux_logits: false under task.args."


def _is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is torch's own linear layer, with its own weights."""
    own = type(layer).forward is torch.nn.Linear.forward
    return own and layer.state_dict().keys() <= {"weight", "bias"}


def _keeping(outputs: dict[str, Any], name: str) -> Any:
    """A hook that keeps the last output of a layer."""

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output

    return hook


def _take(model: torch.nn.Module, weights: Weights) -> None:
    """Load weights without the counters of BatchNorm layers, which `model` does not have."""
    model.load_state_dict({n: t for n, t in weights.items() if n in model.state_dict()})
