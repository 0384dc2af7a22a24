"""A file of C on a Cortex-M4: what it takes there, and that it gives there what it should, in an emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

CORTEX = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
COMPILER, BOARD = "arm-none-eabi-gcc", "qemu-system-arm"

START = """
extern void _start(void);
void reset(void);
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {(void *)0x20300000, (void *)reset};
void reset(void)
{
    *(volatile unsigned *)0xE000ED88 |= 0xFu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\\nisb");
    _start();
}
"""


def measured(path: Path) -> dict[str, int | bool]:
    """The bytes of code with constants, of them the code, of the stack, and whether its own check holds there.

    The stack is that of the network's function and of the two deepest of those that it calls.
    """
    if shutil.which(COMPILER) is None:
        return {}
    built = path.with_suffix(".o")
    command = [COMPILER, "-std=c99", "-Os", *CORTEX, "-fstack-usage", "-c", path, "-o", built]
    subprocess.run([*command], check=True, capture_output=True, cwd=path.parent)
    sizes = subprocess.run(["arm-none-eabi-size", built], check=True, capture_output=True, text=True).stdout
    flash, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    constants = int(re.findall(r"_FLASH (\d+)", path.with_suffix(".h").read_text())[0])
    frames = dict(re.findall(r":(\w+)\t(\d+)\t", path.with_suffix(".su").read_text()))
    frames.pop(f"{path.stem}_input", None)  # rounds the inputs before
    others = sorted((int(one) for name, one in frames.items() if name != path.stem), reverse=True)
    found: dict[str, int | bool] = {
        "flash": flash + data,
        "code": flash + data - constants,
        "static": data + bss,
        "stack": int(frames[path.stem]) + sum(others[:2]),
    }
    if shutil.which(BOARD) is not None:
        found["runs"] = "as expected" in emulated(path)
    return found


def emulated(path: Path) -> str:
    """What the file's `main` prints on an emulated board."""
    start, elf = path.with_name("start.c"), path.with_suffix(".elf")
    start.write_text(START)
    linked = ["--specs=rdimon.specs", "-Wl,--section-start=.vectors=0", "-Wl,-Tdata=0x20000000"]
    main = f"-D{path.stem.upper()}_MAIN"
    command = [COMPILER, "-std=gnu99", "-Os", *CORTEX, *linked, main, path, start, "-o", elf]
    subprocess.run(command, check=True, capture_output=True)
    board = [BOARD, "-machine", "mps2-an386", "-nographic", "-semihosting", "-kernel", elf]
    run = subprocess.run(board, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)
    return run.stdout + run.stderr
