"""Configuration: typed frozen sections, plug-ins by kind, YAML layers and dotted overrides."""

from regscale.config.layers import load, load_layers, load_values, override_layers
from regscale.config.render import kind_of, to_values, to_yaml
from regscale.config.slots import Invalid, kinds, plugin, slot, slots

__all__ = [
    "Invalid",
    "kind_of",
    "kinds",
    "load",
    "load_layers",
    "load_values",
    "override_layers",
    "plugin",
    "slot",
    "slots",
    "to_values",
    "to_yaml",
]
