"""Modules that are imported by name when they are first used, which PyInstaller does not see."""

from PyInstaller.utils.hooks import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
)

hiddenimports = [
    *collect_submodules("magistral_mlx", filter=lambda name: "__pyinstaller" not in name),
    "mlx.__array_api_info",  # its extension imports these two
    "mlx._reprlib_fix",
    "pillow_heif",
]
datas = [*collect_data_files("magistral_mlx"), *collect_data_files("mlx")]
binaries = collect_dynamic_libs("mlx")
