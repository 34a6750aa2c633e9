"""Makes torchvision importable, for open_clip and the library's processors, where it is there."""

import tests.sitecustomize  # noqa: F401
