"""Import torchvision, also where its compiled operators do not fit the torch that is installed.

torchvision's wheel is built against CUDA. With a CPU-only torch its operators cannot load and the import fails with
"operator torchvision::nms does not exist", though models and datasets need none of them. Declaring the two operators
that its Python code registers fake kernels for lets the import pass.
"""

import importlib
import sys
from types import ModuleType

import torch

# Kept for the life of the process: the operators vanish with the library object that declared them.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return the ``torchvision`` package with ``models`` and ``datasets`` loaded."""
    try:
        return _load()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return _load()


def _load() -> ModuleType:
    torchvision = importlib.import_module("torchvision")
    importlib.import_module("torchvision.models")
    importlib.import_module("torchvision.datasets")
    return torchvision
