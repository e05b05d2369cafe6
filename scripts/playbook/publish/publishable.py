"""What of a record may leave the house: the fields in `FIELDS`, each with the form of its values, and nothing else.

No text is looked through for what it must not say: a field that is not listed is not copied, and one whose value has
another form than the listed one says `(unlisted)` with a digest, so that two values that differ still do. A record's
log, `config.yaml`, checkpoints, trace and command are not listed, and neither is a file that is a link.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from playbook.campaign import variants
from playbook.plan.place import CONTAINER_USERS, RUNTIMES
from playbook.profile.breakdown import IDLE, OUTSIDE
from playbook.profile.kernels import Kind
from pretraining.errors import UsageError
from pretraining.inputs.finetuning import SCHEMES
from pretraining.record import run_folder
from pretraining.request import flags as training_flags
from pretraining.request.models import MODELS
from pretraining.request.precisions import EMULATORS, PRECISIONS
from pretraining.request.recipe.nvfp4_recipe import INGREDIENTS, SHORT, TITLES, WORDS, is_spelled, words_in

_LEFT_OUT = object()


def number(value: Any) -> Any:
    """Also true and false."""
    return value if isinstance(value, int | float) else _LEFT_OUT


def form(pattern: str) -> Callable[[Any], Any]:
    """Texts that match `pattern` whole."""

    def rule(value: Any) -> Any:
        return value if isinstance(value, str) and re.fullmatch(pattern, value) else _unlisted(value)

    return rule


def words(*known: str) -> Callable[[Any], Any]:
    """Any of these texts; numbers too."""
    return lambda value: value if value in known or isinstance(value, int | float) else _unlisted(value)


def _of_recipe(name: str) -> Callable[[Any], Any]:
    """The values of a word or a field of the NVFP4 recipe."""
    return lambda value: value if is_spelled(name, str(value)) else _unlisted(value)


def _unlisted(value: Any) -> str:
    text = str(value)
    if re.fullmatch(r"\(unlisted\) [0-9a-f]{8}", text):
        return text
    return f"(unlisted) {hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def _hardware(value: Any) -> Any:
    """The name of a processor: its maker, and words and model numbers that processors are called by."""
    maker, *rest = str(value).split()[:12] or [""]
    listed = re.fullmatch(_MAKERS, maker) and all(re.fullmatch(_HARDWARE, word) for word in rest)
    return value if listed else _unlisted(value)


_MAKERS = r"NVIDIA|AMD|(?i:Intel)(\(R\))?|ARM|Ampere|Neoverse-[NV]\d|Cortex-[AX]\d+|aarch64|x86_64"
_HARDWARE = (
    r"GeForce|RTX|PRO|GTX|Tesla|Quadro|TITAN|Ada|Blackwell|Hopper|Graphics|Generation|Server|Workstation|Laptop|GPU|MIG"
    r"|Edition|Max-Q|SUPER|Ti|NVL|PCIe?|EPYC|Ryzen|Threadripper|Xeon(\(R\))?|XEON\(R\)|Core(\(TM\))?|CPU|Platinum"
    r"|PLATINUM|Gold|GOLD|Silver|Processor|Altra|Max|@|v\d|i\d-\d{4,5}[A-Z]{0,2}|\d+-Core|\d\.\d+GHz|\d+g\.\d+gb"
    r"|[A-Z]{0,3}\d{1,5}[A-Z]{0,2}\+?(-SXM\d)?(-\d+GB)?|HBM\d[Ee]?"
)


def _overrides(value: Any) -> Any:
    """Fields of the config, with numbers and words of the config's own."""
    if not isinstance(value, dict):
        return _unlisted(value)
    return {
        name if re.fullmatch(_FIELD, name) else _unlisted(name): setting
        if isinstance(setting, int | float) or re.fullmatch(_SETTING, str(setting))
        else _unlisted(setting)
        for name, setting in value.items()
    }


_FIELD = r"(model|optimizer|scheduler|train|validation|ddp|mixed_precision|comm_overlap|rng|dist|dataset)(\.[a-z\d_]+)+"
_SETTING = (
    r"-?\d+(\.\d+)?(e-?\d+)?|true|false|null|full|selective|block|uniform|local|none|full_iteration|transformer_engine"
    r"|flash|fused|unfused|auto|cosine|linear|constant|adam|sgd|bf16|fp16|fp32|fp8|torch\.(float|bfloat)\d\d"
    r"|\[(core_attn|mlp|layernorm|moe_act|moe|shared_experts|,| )*\]"
)


def _cause(value: Any) -> str:
    """Why a run ended, in words of the playbook's own; nothing of an error, which may say anything."""
    known = re.match(r"CUDA out of memory|interrupted by SIG(INT|TERM|HUP)|the disk is full", str(value))
    return known[0] if known else ""


def _kernel(value: Any) -> str:
    """A kernel of a library, by the words that its names begin with."""
    return value if isinstance(value, str) and re.fullmatch(_KERNEL, value) else ""


_KERNEL = (
    r"(?!.*[/@=])((nvjet|cudnn_generated|triton_(poi|red|per)_fused|cutlass|ampere|hopper|sm\d+_xmma|ncclDevKernel)_.*"
    r"|(void )?(at::native|multi_tensor_apply_kernel|transformer_engine|cub)\b.*|element_mul_kernel|aten::\w+|Memcpy.*)"
)
_SHA = r"sha256:[0-9a-f]{64}"
_DIGEST = form(r"[0-9a-f]{12}")
TIME = form(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_VERSION = form(r"\d+(\.\d+){0,2}((a|b|rc|\.?dev|\.?post)\d{1,8})?(\+(cpu|cu\d{2,3}|[0-9a-f]{7,10})(\.nv[\d.]{1,8})?)?")
_MODEL, _PRECISION, _DATA = words(*MODELS), words(*PRECISIONS), form(r"mock|python-stdlib(-[\d.]+-[0-9a-f]{12})?")
_WEIGHTS = form(r"hf:(meta-llama/(Meta-)?Llama|nvidia/N?emotron|Qwen/Qwen)[-\w.]{1,24}")
_NUMBERS = "bf16_head_layers bf16_tail_layers global_batch_size micro_batch_size num_layers seed train_iters "
_WORDS = {word: _of_recipe(word) for word in WORDS}
_INGREDIENTS = {name: number if name in INGREDIENTS else _of_recipe(name) for name in TITLES}
_PACKAGES = ("python", "torch", "triton", "transformers", "numpy", "numba")
_MEGATRON = ("megatron-bridge", "megatron-core", "transformer-engine")
_PARITY = (
    "parameters hidden_size ffn_hidden_size num_attention_heads num_query_groups vocab_size warmup_iters decay_iters "
    "start_iteration learning_rate min_learning_rate tensor_parallel pipeline_parallel context_parallel world_size "
    "sequence_length sequence_parallel threads tuned num_experts experts_per_token expert_parallel"
)


def _numbers(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), number)


# file of a run folder: its fields and what each may hold. Of a list, of each element.
FIELDS: dict[str, dict[str, Any]] = {
    run_folder.PLAN: {
        "schema": number,
        "created": TIME,
        "git_commit": lambda value: form(r"[0-9a-f]{12}(-dirty)?")(
            re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}(?=-dirty$|$)", r"\1", str(value))
        ),
        "image": {"digest": form(_SHA), "name": form(r"nvcr\.io/nvidia/nemo:[\d.]{1,12}")},
        "gpu": {"index": number, "name": _hardware, "memory": number, "capability": [number]},
        "request": {
            **_numbers(_NUMBERS + "processes warmup_iters sequence_length profile trains tuned"),
            "model": _MODEL,
            "precision": _PRECISION,
            "data": _DATA,
            "emulate": words(*EMULATORS),
            "finetune": words(*SCHEMES),
            "runtime": words(*RUNTIMES),
            "split": [number],
            "nvfp4": _WORDS,
            "switch": _of_recipe("switch"),
            "switches": dict.fromkeys(SHORT, words("0", "1")),  # of earlier records
        },
    },
    run_folder.ENVIRONMENT: {
        **_numbers("schema processes flops_per_token tokens_per_step mock_data trained"),
        "started": TIME,
        "model": _MODEL,
        "finetuned": words(*SCHEMES),
        "profiled": [number],
        "measured": [number],
        "text": {"bigram_entropy": number, "tokens": _numbers("train validation test")},
        "sampling": _numbers("rate_hz"),
        "probe": _numbers("passed skipped seconds"),
        "versions": dict.fromkeys((*_PACKAGES, *_MEGATRON), _VERSION),
        "device": {
            **_numbers("memory_bytes threads"),
            "kind": words("cpu", "gpu"),
            "name": _hardware,
            "driver": _VERSION,
            "cuda": _VERSION,
            "capability": [number],
        },
        "precision": {
            **_numbers("bf16_head_layers bf16_tail_layers"),
            "name": _PRECISION,
            "arithmetic": words("native", "emulated"),
            "emulator": words(*EMULATORS),
            "ingredients": _INGREDIENTS,
            "switches_at": number,
        },
        "context": {
            **_numbers("gradient_accumulation_fusion save_interval"),
            "code": _DIGEST,
            "gradient_reduction": words("float32", "bfloat16"),
            "parameter_gather": words("float32", "bfloat16", "fp8", "fp4"),
            "writers": [words("tensorboard", "wandb", "mlflow")],
        },
        "parity": {
            **_numbers(_NUMBERS + _PARITY),
            "model": _MODEL,
            "data": _DATA,
            "decay_style": words("cosine", "linear", "constant", "WSD", "inverse-square-root"),
            "optimizer": form(r"(adam|sgd)( (b1|b2|wd|clip)=[\d.e-]{1,8})+"),
            "tokenizer": words("NullTokenizer"),
            "transformer_impl": words("local", "transformer_engine", "inference_optimized"),
            "attention_backend": words("flash", "fused", "unfused", "local", "auto"),
            "cuda_graphs": words("none", "local", "transformer_engine", "full_iteration"),
            "recompute": words("full", "selective"),
            "device": _hardware,
            **dict.fromkeys(("driver", "cuda", "torch"), _VERSION),
            **dict.fromkeys(("megatron_bridge", "megatron_core", "transformer_engine"), _VERSION),
            "weights": _WEIGHTS,
            "finetune": words(*SCHEMES),
            "plugin": _DIGEST,
            "engine_switches": form(r"NVTE_[A-Z\d_]{1,40}=[A-Za-z\d]{0,12}( NVTE_[A-Z\d_]{1,40}=[A-Za-z\d]{0,12})*"),
            "overrides": _overrides,
        },
    },
    run_folder.OUTCOME: {
        **_numbers("schema exit_code iterations seconds sampling_core_share"),
        "verdict": words(*run_folder.Verdict),
        "cause": _cause,
        "ended": TIME,
        "peak_memory": {
            **_numbers("bytes processes"),
            "kind": words(*run_folder.Peak),
            "all": dict.fromkeys(run_folder.Peak, number),
        },
    },
    run_folder.METRICS: {
        **_numbers("iteration time loss grad_norm learning_rate step_time_s finite skipped"),
        "kind": words("train", "eval"),
        "split": words("validation", "test"),
    },
    run_folder.SAMPLES: {**_numbers("time samples power_w energy_j used_bytes process_bytes"), "device": words("cpu")},
    run_folder.PROFILE: {
        **_numbers("step steps on_gpu"),
        "rows": [{**_numbers("milliseconds calls of_it"), "kind": words(*Kind, IDLE, OUTSIDE), "largest": _kernel}],
    },
}


def copy_run(source: Path, target: Path) -> None:
    """Copy the listed fields of a run folder to `target`, a new one, its lines compressed.

    Raises UsageError where a file of the record is a link or not of JSON, and OSError.
    """
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        name = path.name.removesuffix(run_folder.PACKED)
        fields = FIELDS.get(run_folder.SAMPLES if re.fullmatch(run_folder.samples_of(r"\d+"), name) else name)
        if fields is None:
            continue
        if path.is_symlink() or not path.is_file():
            raise UsageError(f"{path} is no file of its own, and only a record's own files are published")
        with run_folder.open_lines(path) as file:
            content = file.read().decode("utf-8", errors="replace")
        if name.endswith(".jsonl"):
            lines = "".join(_line(fields, line) for line in content.splitlines(keepends=True)).encode()
            (target / (name + run_folder.PACKED)).write_bytes(gzip.compress(lines, mtime=0))
        else:
            try:
                said = listed(fields, json.loads(content))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path} is damaged: it is not JSON") from error
            (target / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def listed(rule: Any, value: Any) -> Any:
    """What `rule` lets through of a value of JSON."""
    if value is None:
        return None
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            return {}
        kept = {name: listed(rule[name], inner) for name, inner in value.items() if name in rule}
        return {name: inner for name, inner in kept.items() if inner is not _LEFT_OUT}
    if isinstance(rule, list):
        kept = [listed(rule[0], each) for each in value] if isinstance(value, list) else []
        return [each for each in kept if each is not _LEFT_OUT]
    return rule(value)


def _line(fields: dict[str, Any], line: str) -> str:
    """A line of JSON; "" for what a power cut left of one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    said = listed(fields, value)
    return line if said == value else json.dumps(said) + "\n"


def command(typed: str) -> str:
    """The command that made runs, or "" where a word of it is not listed: half of one repeats nothing."""
    try:
        program, target, *rest = shlex.split(typed)
        given = dict(word.split("=", 1) if "=" in word else (word, "") for word in rest)
        arguments = shlex.split(given.pop("ARGS", ""))
    except ValueError:
        return ""
    if program != "make" or target not in {*PRECISIONS, "compare", "ablate", "profile", "sensitivity"}:
        return ""
    is_listed = all(_is_listed(name, value) for name, value in given.items())
    return typed if is_listed and "\n" not in typed and _are_flags(arguments) else ""


def _is_listed(name: str, value: str) -> bool:
    if read := {"NVFP4": words_in, "VARIANTS": variants.read_all}.get(name):
        with contextlib.suppress(UsageError):
            return bool(read(value))
        return False
    return name in _VARIABLES and bool(_VARIABLES[name].fullmatch(value))


def _any(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)))


_VARIABLES = {
    **dict.fromkeys(("ITERS", "WARMUP", "GBS", "MBS", "SEQ", "SEED", "SAVE", "REPEAT"), re.compile(r"\d{1,9}")),
    "SEEDS": re.compile(r"\d{1,9}([ ,]{1,2}\d{1,9}){0,15}"),
    **dict.fromkeys(("LOSS_MARGIN", "SPEEDUP"), re.compile(r"\d{1,4}(\.\d{1,4})?|published")),
    **dict.fromkeys(("NPROC", "NODES", "TP", "PP", "CP", "TUNED", "FRESH", "PROFILE", "PROBE"), re.compile(r"\d{1,4}")),
    "BUDGET": re.compile(r"\d{1,2}(\.\d{1,4})?%?"),
    **dict.fromkeys(("PRECISION", "A", "B"), _any(PRECISIONS)),
    "MODEL": _any(MODELS),
    "RUNTIME": _any(RUNTIMES),
    "CONTAINER_USER": _any(CONTAINER_USERS),
    "EMULATE": _any(("1", *EMULATORS)),
    "DATA": _any(("mock", "python-stdlib")),
}


def _are_flags(arguments: list[str]) -> bool:
    """Whether these are flags of a training with numbers, and overrides with listed values."""
    known = {flag for action in training_flags.parser("")._actions for flag in action.option_strings}
    for word in arguments:
        name, _, value = word.partition("=")
        is_override = bool(re.fullmatch(_FIELD, name) and re.fullmatch(_SETTING, value))
        if not (is_override or word in known or re.fullmatch(r"\d{1,9}", word)):
            return False
    return True
