"""Lists the files of the Python installation that a session may read: the interpreter and allowed packages.

The environment of the service may contain more than a policy should see, such as data sets with answers, so only
the named packages and their requirements are readable.
"""

from __future__ import annotations

import os
import re
import site
import sys
import sysconfig
from importlib import metadata

DEFAULT_PACKAGES = (
    "numpy", "pillow", "matplotlib", "opencv-python-headless", "opencv-python", "scipy", "sympy", "pandas",
    "scikit-image", "scikit-learn", "seaborn", "networkx", "shapely", "imageio", "tqdm",
)  # fmt: skip
# Imported once by the zygote; every session inherits them by copy-on-write.
PRELOADED_MODULES = (
    "numpy", "numpy.random", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFont", "PIL.ImageFilter", "PIL.ImageEnhance",
    "PIL.ImageOps", "matplotlib", "matplotlib.pyplot", "matplotlib.patches", "cv2", "scipy", "scipy.ndimage", "sympy",
    "pandas", "skimage", "math", "collections", "itertools", "functools", "re", "json", "datetime", "statistics",
    "fractions", "decimal", "random", "io", "base64", "string", "asyncio", "subprocess", "concurrent.futures",
)  # fmt: skip
# Listed although /usr is: the private root binds those folders of /usr that other paths lead to, not all of it.
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Returns versions, by canonical name, of these distributions and their requirements, as far as installed."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = _canonical(waiting.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for requirement in distribution.requires or ():
            required = re.match(r"[A-Za-z0-9._-]+", requirement)
            if required and "extra ==" not in requirement:
                waiting.append(required[0])
    return dict(sorted(found.items()))


def package_paths(names: tuple[str, ...]) -> list[str]:
    """Lists the folders and files in site-packages of these distributions and their requirements."""
    paths: set[str] = set()
    for name in installed_versions(names):
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            if file.parts[0] != "..":
                paths.add(str(distribution.locate_file(file.parts[0])))
    return sorted(p for p in paths if os.path.exists(p) and os.path.basename(p) != "__pycache__")


def readable_font_folders(names: tuple[str, ...]) -> list[str]:
    """Lists the folders in which a session may read fonts, in every tier."""
    return [os.path.realpath(folder) for folder in FONT_FOLDERS] + package_paths(names)


def site_packages_folders() -> list[str]:
    """Lists the site-packages folders of the virtual environment and of its base interpreter."""
    base = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    folders = {*site.getsitepackages(), base, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return sorted(f for f in folders if os.path.isdir(f))


def interpreter_paths() -> list[str]:
    """Lists the paths that the interpreter and its shared libraries need, third-party packages excluded."""
    paths = {
        "/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives",
        "/etc/fonts", "/etc/localtime", "/etc/mime.types",
        sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"), os.path.dirname(sys.executable),
        os.path.join(sys.prefix, "pyvenv.cfg"), os.path.dirname(os.path.realpath(sys.executable)),
        *FONT_FOLDERS, *_shared_libraries(),
    }  # fmt: skip
    return sorted(path for path in paths if path and os.path.exists(path))


def readable_paths(names: tuple[str, ...]) -> list[str]:
    """Lists the paths that a session without a private root may read.

    These are the `interpreter_paths` minus site-packages folders, plus the allowed packages.
    """
    hidden = [os.path.realpath(folder) for folder in site_packages_folders()]
    found: list[str] = []
    waiting = interpreter_paths()
    while waiting:
        path = os.path.realpath(waiting.pop())
        if path in hidden:
            continue
        if any(folder.startswith(path + os.sep) for folder in hidden):
            waiting += [os.path.join(path, name) for name in os.listdir(path)]
        else:
            found.append(path)
    return sorted(set(found)) + package_paths(names)


def _shared_libraries() -> list[str]:
    """Lists the interpreter's shared libraries outside the system folders (libpython of pyenv or conda)."""
    folder = os.path.join(sys.base_prefix, "lib")
    if folder.startswith("/usr/") or not os.path.isdir(folder):
        return []
    return [os.path.join(folder, name) for name in os.listdir(folder) if ".so" in name]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
