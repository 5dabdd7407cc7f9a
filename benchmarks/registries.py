"""Export and import every architecture of timm, open_clip and transformers that can be made here.

    python benchmarks/registries.py RESULTS.jsonl [--library timm] [--all] [--minutes 20]

For each model, with random weights: what `export` writes gives the same logits in the library's own
loader; what it writes comes back by `import` and is exported as the same bytes; or the model is
refused by name when the task is made, before anything is trained. Each model runs in a process of
its own, with a limit of memory and of time. The file of results has a line for each model. Models
that it names already are not tried again. Without --all, the smallest model of each family and kind
of head is tried.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from soupray.core.errors import SouprayError, one_line
from soupray.core.texts import pack
from soupray.spec.task import OpenClipSpec, TimmSpec, TransformersSpec
from soupray.tasks import task_of
from soupray.tasks.foreign import load_foreign

MEMORY_GB, CPU_SECONDS, SECONDS = 8, 120, 600
CLASSES = ("red", "green", "blue")
SMALL = (
    "test", "atto", "femto", "pico", "nano", "zepto", "micro", "xxt", "xxs", "xtiny", "_t0", "_m0",
    "_s0", "b00", "_050", "_035", "_025", "tiny", "xs", "_s_", "18", "10", "_s", "small", "mini",
    "b0", "_0", "_12", "14", "26", "lite",
)  # fmt: skip
LARGE = ("giant", "huge", "gigantic", "large", "_xl", "_l", "_h", "_g", "so400m", "base")

LARGE_CLIP = ("-L", "-H", "-g", "-e-", "-E", "-bigG", "SO400M", "xl", "XL", "large", "x64", "x16")
TOWERS = {"xlm": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100"}
"""Kinds of the text towers of Hugging Face, by a part of their names."""

Row = dict[str, Any]
Job = Callable[[Path], Row]


def moved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights near `weights`: many models start with heads of zeros."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.01 * (torch.rand(tensor.shape, generator=draw) - 0.5)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


@torch.inference_mode()
def round_trip(spec: Any, folder: Path, theirs: Callable[[str, Any], torch.Tensor]) -> Row:
    """Export, load with the library, import and export again; say what is not equal."""
    try:
        task: Any = task_of(spec)
        if isinstance(spec, TransformersSpec):
            task.init()
    except SouprayError as error:
        return {"verdict": "refused", "why": str(error)}
    torch.manual_seed(0)
    model = task.model().eval()
    weights = moved(model.state_dict())
    model.load_state_dict(weights)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # tied: equal
    if isinstance(spec, TransformersSpec):
        samples = torch.from_numpy(pack(["a b c d", "d"]))
    else:
        samples = torch.randint(0, 256, (2, 3, spec_size(task), spec_size(task))).byte()
    inputs = task.inputs(samples)
    mine = model(inputs)
    for name in ("one", "two"):
        (folder / name).mkdir()
    said = task.export(weights, folder / "one")
    found = theirs(said, inputs)
    apart = float((mine - found).abs().max() / mine.abs().max().clamp_min(1e-6))
    if not apart < 1e-3:
        return {"verdict": "wrong", "why": f"logits differ by {apart:.2g} of the largest"}
    adopted = task.adopt(load_foreign(folder / "one"), "one")
    if odd := [n for n in weights if not torch.equal(adopted[n], weights[n])]:
        return {"verdict": "wrong", "why": f"import changes {odd[0]}"}
    task.export(adopted, folder / "two")
    for file in sorted((folder / "one").glob("*.safetensors")):
        if file.read_bytes() != (folder / "two" / file.name).read_bytes():
            return {"verdict": "wrong", "why": f"{file.name} has other bytes after an import"}
    return {"verdict": "equal", "apart": apart}


def spec_size(task: Any) -> int:
    """The side of the inputs."""
    return int(task.pixels.size[0])


def timm_jobs(every: bool) -> Iterator[tuple[str, Job]]:
    """A job for each architecture of timm, the smallest ones of each family first."""
    import timm
    from timm.models import _registry

    kinds: dict[object, list[str]] = {}
    for name in timm.list_models():
        config: Any = timm.get_pretrained_cfg(name)
        head = config.classifier if config else None
        kinds.setdefault((_registry._model_to_module[name], repr(head)), []).append(name)
    ordered = [sorted(names, key=_smallness) for names in kinds.values()]
    for place in range(max(map(len, ordered)) if every else 1):
        for names in ordered:
            if place < len(names):
                yield names[place], _timm_job(names[place])


def _smallness(name: str) -> tuple[int, int, str]:
    first = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
    return first + 50 * any(word in name for word in LARGE), len(name), name


def _timm_job(name: str) -> Job:
    def job(folder: Path) -> Row:
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        size = config.input_size[-1] if config else 224
        spec = TimmSpec(
            kind="timm", model=name, classes=CLASSES, size=size, mean=(0.5,) * 3, std=(0.5,) * 3
        )

        def theirs(said: str, inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = eval(said, {"timm": timm}).eval()(inputs)
            return logits

        return round_trip(spec, folder, theirs)

    return job


def open_clip_jobs(every: bool) -> Iterator[tuple[str, Job]]:
    """A job for each architecture of open_clip, large ones last.

    Its own towers have one narrow layer. Text towers of Hugging Face are small ones of the same
    kind, with a small tokenizer, in folders.
    """
    import open_clip

    for name in sorted(open_clip.list_models(), key=lambda n: any(w in n for w in LARGE_CLIP)):
        yield name, _open_clip_job(name)


def _open_clip_job(name: str) -> Job:
    def job(folder: Path) -> Row:
        import open_clip
        import torch.nn.functional as F

        config: Any = open_clip.get_model_config(name)
        for tower in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            layers = config.get(tower, {}).get("layers")
            if isinstance(layers, int):
                config[tower]["layers"] = 1
            elif isinstance(layers, list):
                config[tower]["layers"] = [1] * len(layers)
            if isinstance(layers, int) and "timm_model_name" not in config[tower]:
                config[tower]["width"] = 64
                config[tower] |= {"head_width": 32} if tower == "vision_cfg" else {"heads": 2}
        if "vocab_size" in config["text_cfg"] and "hf_tokenizer_name" not in config["text_cfg"]:
            config["text_cfg"]["vocab_size"] = 64
        source = folder / "source"
        source.mkdir()
        _small_texts(config["text_cfg"], folder)
        about = {"mean": [0.5] * 3, "std": [0.5] * 3}
        whole = {"model_cfg": config, "preprocess_cfg": about}
        (source / "open_clip_config.json").write_text(json.dumps(whole))
        try:
            made = open_clip.create_model(f"local-dir:{source}", load_weights=False)
        except Exception as error:  # noqa: BLE001 - sizes that do not fit, or the hub is needed
            return {"verdict": "not built", "why": one_line(f"{type(error).__name__}: {error}")}
        torch.save(made.state_dict(), source / "open_clip_pytorch_model.bin")
        spec = OpenClipSpec(
            kind="open_clip", model=f"local-dir:{source}", classes=CLASSES, templates=("a {}",)
        )

        def theirs(said: str, inputs: torch.Tensor) -> torch.Tensor:
            from safetensors.torch import load_file

            clip = eval(said, {"open_clip": open_clip}).eval()
            head = load_file(folder / "one" / "head.safetensors")["weight"]
            return F.normalize(clip.encode_image(inputs), dim=-1) @ head.T

        return round_trip(spec, folder, theirs)

    return job


def _small_texts(config: dict[str, Any], folder: Path) -> None:
    """Put a small text tower and tokenizer in the place of those of Hugging Face."""
    import transformers

    if named := config.get("hf_model_name"):
        kind = next(kind for part, kind in TOWERS.items() if part in named)
        made: Any = transformers.AutoModel
        made.from_config(_small_config(kind)).save_pretrained(folder / "text")
        config["hf_model_name"] = str(folder / "text")
    if "hf_tokenizer_name" in config:
        _tokenizer().save_pretrained(folder / "text")
        config["hf_tokenizer_name"] = str(folder / "text")


def transformers_jobs(every: bool) -> Iterator[tuple[str, Job]]:
    """Three jobs for each architecture of transformers that classifies texts, made small."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    for pooling in ("own", "mean", "cls"):
        for name in NAMES:
            yield f"{name} ({pooling})", _transformers_job(name, pooling)


WIDE, DEEP = 32, 2
SIZES = {
    "hidden_size": WIDE, "d_model": WIDE, "n_embd": WIDE, "dim": WIDE, "emb_dim": WIDE,
    "embedding_size": WIDE, "intermediate_size": 64, "d_ff": 64, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "hidden_dim": 64, "ffn_dim": 64, "d_inner": 64,
    "num_hidden_layers": DEEP, "n_layer": DEEP, "n_layers": DEEP, "num_layers": DEEP,
    "num_decoder_layers": DEEP,
    "encoder_layers": DEEP, "decoder_layers": DEEP, "num_attention_heads": 2, "n_head": 2,
    "n_heads": 2, "num_heads": 2, "num_key_value_heads": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "d_head": 16, "head_dim": 16, "d_kv": 16,
    "max_position_embeddings": 40, "vocab_size": 64, "num_experts": 2, "num_local_experts": 2,
    "word_embed_proj_dim": WIDE, "ffn_hidden_size": 64, "moe_intermediate_size": 32,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "n_routed_experts": 4, "experts_per_token": 2, "rotary_dim": 8, "entity_vocab_size": 16,
}  # fmt: skip


def _transformers_job(name: str, pooling: str) -> Job:
    def job(folder: Path) -> Row:
        import torch.nn.functional as F
        import transformers
        from safetensors.torch import load_file

        source = folder / "source"
        transformers.utils.logging.disable_progress_bar()
        kind: Any = transformers.AutoModel
        if pooling == "own":
            kind = transformers.AutoModelForSequenceClassification
        try:
            made = kind.from_config(_small_config(name))
            made(input_ids=torch.tensor([[4, 5, 6, 3]]), attention_mask=torch.ones(1, 4).long())
        except Exception as error:  # noqa: BLE001 - sizes that do not fit together, or no such model
            return {"verdict": "not built", "why": one_line(f"{type(error).__name__}: {error}")}
        made.save_pretrained(source)
        _tokenizer().save_pretrained(source)
        spec = TransformersSpec(
            kind="transformers",
            model=str(source),
            classes=CLASSES,
            pooling=pooling,  # type: ignore[arg-type]
            normalise=pooling != "own",
            max_tokens=8,
        )

        def theirs(said: str, inputs: torch.Tensor) -> torch.Tensor:
            model = eval(said, {"transformers": transformers}).eval()
            mask = (inputs != 0).long()
            out = model(input_ids=inputs, attention_mask=mask)
            if pooling == "own":
                return out.logits  # type: ignore[no-any-return]
            head = load_file(folder / "one" / "head.safetensors")
            states = out.last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
            pooled = states[:, 0] if pooling == "cls" else mean
            return F.linear(F.normalize(pooled, dim=-1), head["weight"], head.get("bias"))

        return round_trip(spec, folder, theirs)

    return job


def _small_config(name: str) -> Any:
    import transformers

    known = transformers.AutoConfig.for_model(name).to_dict()
    small: dict[str, Any] = _sizes(known)
    small |= {k: _sizes(v) for k, v in known.items() if k.endswith("_config") and _sizes(v)}
    return transformers.AutoConfig.for_model(
        name, **small, pad_token_id=0, eos_token_id=3, bos_token_id=2
    )


def _sizes(known: Any) -> dict[str, int]:
    """Small sizes in place of those that a configuration has, or leaves open."""
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in SIZES.items() if k in known and isinstance(known[k], int | None)}


def _tokenizer() -> Any:
    import tokenizers
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    )


def in_process(job: Job) -> Row:
    """Run a job in a process of its own, with limits."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB << 30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS,) * 2)
        folder = Path(tempfile.mkdtemp(prefix="registries-"))
        try:
            send.send(job(folder))
        except SouprayError as error:
            send.send({"verdict": "late", "why": f"{type(error).__name__}: {error}"[:400]})
        except MemoryError:
            send.send({"verdict": "too large", "why": f"more than {MEMORY_GB} GB"})
        except Exception as error:  # noqa: BLE001 - the finds of this sweep
            why = f"{type(error).__name__}: {error}".splitlines()[0][:400]
            large = "can't allocate memory" in str(error)
            send.send({"verdict": "too large" if large else "error", "why": why})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    process = context.Process(target=work)
    process.start()
    send.close()  # so that the end of the process is the end of the pipe
    if receive.poll(SECONDS):
        try:
            row: Row = receive.recv()
        except EOFError:
            process.join()
            row = {"verdict": "error", "why": f"the process ended with {process.exitcode}"}
            if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
                row = {"verdict": "too slow", "why": f"more than {CPU_SECONDS} s of CPU"}
    else:
        row = {"verdict": "too slow", "why": f"more than {SECONDS} s"}
        process.kill()
    process.join()
    return row


JOBS = {"timm": timm_jobs, "open_clip": open_clip_jobs, "transformers": transformers_jobs}


def main() -> None:
    """Try the models of which the file of results has no line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--library", choices=JOBS, action="append")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names of models")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    known = set()
    if args.results.exists():
        rows = [json.loads(line) for line in args.results.read_text().splitlines()]
        known = {(row["library"], row["model"]) for row in rows}
    end, counts = time.monotonic() + 60 * args.minutes, Counter[str]()
    with args.results.open("a") as out:
        for library in args.library or JOBS:
            importlib.import_module(f"soupray.tasks.{library}")  # once, for all processes
            for name, job in JOBS[library](args.all):
                if (library, name) in known or not any(part in name for part in args.only):
                    continue
                if time.monotonic() > end:
                    break
                started = time.monotonic()
                row = {"library": library, "model": name} | in_process(job)
                row["seconds"] = round(time.monotonic() - started, 1)
                counts[row["verdict"]] += 1
                out.write(json.dumps(row) + "\n")
                out.flush()
    print(dict(counts))


if __name__ == "__main__":
    main()
