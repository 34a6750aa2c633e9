"""Makes torchvision importable, for torch-fidelity, where it is there."""

import tests.sitecustomize  # noqa: F401
