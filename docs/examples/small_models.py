"""Text models of transformers, made small: the logits of each with rotary and with its own code.

Whatever class takes the sizes below and plain input_ids is run; its own functions that rotate raise
while rotary's stand in.  Prints the counts of docs/models.md, then one line a model:

    python docs/examples/small_models.py [FOLDER ...]
"""

import copy
import dataclasses
import sys
import warnings
from contextlib import contextmanager

import torch
import transformers
from all_models import NEEDED, files
from transformers import PreTrainedModel

from rotary.integrations._transformers_functions import NAME
from rotary.integrations.transformers import replace_rotary

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
MOST = 30_000_000  # parameters
IDS = torch.arange(1, 25)[None] * 5 % 127


def made(cls):
    """Return a small model, or None where the class does not take the sizes."""
    known = {field.name for field in dataclasses.fields(cls.config_class)}
    known |= set(cls.config_class.attribute_map)
    options = {name: value for name, value in SIZES.items() if name in known}
    options |= copy.deepcopy(NEEDED.get(cls.config_class.model_type, {}))
    kinds = getattr(cls.config_class(), "layer_types", None) if "layer_types" in known else None
    if kinds:
        options["layer_types"] = (list(dict.fromkeys(kinds)) * 4)[:4]
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(cls.config_class(**options)).parameters())
    if size > MOST:
        return None
    torch.manual_seed(0)
    return cls(cls.config_class(**options)).eval()


def output(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@contextmanager
def forbidden(module):
    """Let the file's own functions that rotate raise."""

    def called(*args, **kwargs):
        raise AssertionError("a function of transformers was called")

    kept = {name: value for name, value in vars(module).items() if NAME.fullmatch(name)}
    vars(module).update(dict.fromkeys(kept, called))
    try:
        yield
    finally:
        vars(module).update(kept)


def classes(module):
    """Yield the first whole models of a file."""
    own = [
        cls for cls in vars(module).values() if getattr(cls, "__module__", "") == module.__name__
    ]
    models = [cls for cls in own if isinstance(cls, type) and issubclass(cls, PreTrainedModel)]
    whole = [cls for cls in models if cls.__name__.endswith(("Model", "ForCausalLM"))]
    yield from [cls for cls in whole if "PreTrained" not in cls.__name__][:4]


def compared(module):
    """Return the first class that runs, how far apart its outputs are, and the way back."""
    for cls in classes(module):
        try:
            model = made(cls)
            theirs = None if model is None else output(model)
        except Exception:  # whatever sizes that do not fit lead to
            continue
        if not isinstance(theirs, torch.Tensor):
            continue
        try:
            with replace_rotary(model), forbidden(module):
                ours = output(model)
        except ValueError:
            continue  # refused: all_models.py says why
        apart = float((ours - theirs).abs().max() / theirs.abs().max())
        return cls.__name__, apart, torch.equal(output(model), theirs)
    return None


def main(folders):
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = [
        row
        for folder, module, _ in files()
        if not folders or folder in folders
        for row in [compared(module)]
        if row is not None
    ]
    near = sum(apart < 1e-4 for _, apart, _ in found)
    back = sum(same for _, _, same in found)
    print(f"{len(found)} run, {near} of them within 1e-4, {back} restored to the bit")
    for name, apart, _ in found:
        print(f"{name}: {apart:.0e}")


if __name__ == "__main__":
    main(sys.argv[1:])
