"""Tools that a policy may call: each module of this package defines one or more classes of tools.

Importing the package imports all its modules, which register their tools; `tool_registry.run_tools` returns those of a run.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
