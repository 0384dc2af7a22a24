"""Names that the function of an exported file cannot have: they are taken in C, by its libraries, or in the file."""

from __future__ import annotations

import re
import subprocess
from functools import cache

from tenflex.export.source import functions_of_kernels

KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile
    while
"""
OF_MATH = """
    acos asin atan atan2 cos sin tan cosh sinh tanh acosh asinh atanh exp exp2 expm1 frexp ilogb ldexp log
    log10 log1p log2 logb modf scalbn scalbln cbrt fabs hypot pow sqrt erf erfc lgamma tgamma ceil floor
    nearbyint rint lrint llrint round lround llround trunc fmod remainder remquo copysign nan nextafter
    nexttoward fdim fmax fmin fma
"""
OTHERS = """
    main abort abs atexit atof atoi atol bsearch calloc div exit fclose fopen fprintf fputs fread free fscanf
    fwrite getchar getenv gets index isalnum isalpha isdigit islower isspace isupper labs llabs malloc memchr
    memcmp memcpy memmove memset printf putchar puts qsort rand realloc rindex scanf setjmp signal snprintf
    sprintf srand sscanf strcat strchr strcmp strcpy strlen strncat strncmp strncpy strstr strtod strtol
    system time tolower toupper vprintf j0 j1 jn y0 y1 yn gamma
    NULL EOF BUFSIZ RAND_MAX EXIT_SUCCESS EXIT_FAILURE CHAR_BIT SIZE_MAX PTRDIFF_MAX PTRDIFF_MIN NAN INFINITY
    HUGE_VAL size_t ptrdiff_t wchar_t FILE stdin stdout stderr errno assert linux unix i386 bool true false
"""
OF_CPP = """
    alignas alignof and and_eq asm bitand bitor catch class compl concept constexpr decltype delete explicit export
    final friend mutable namespace new noexcept not not_eq nullptr operator or or_eq override private protected
    public requires template this throw try typeid typename using virtual xor xor_eq
"""
OF_STDINT = r"u?int((_fast|_least)?(8|16|32|64)|ptr|max)_t|U?INT((_FAST|_LEAST)?(8|16|32|64)|PTR|MAX)_(MAX|MIN|C)"
TAKEN = {
    *KEYWORDS.split(),
    *OTHERS.split(),
    *OF_CPP.split(),
    *(name + kind for name in OF_MATH.split() for kind in ("", "f", "l")),
}
"""What compilers know themselves, and those of C++, too, which may include the header."""

INCLUDED = ("stdint.h", "stdio.h", "time.h")
"""What the file and its driver include: there nothing may be declared twice."""

LIBRARIES = (
    *("ctype.h", "fcntl.h", "math.h", "pthread.h", "signal.h", "stdlib.h", "string.h", "sys/socket.h", "sys/stat.h"),
    *("unistd.h", "wchar.h"),
)
"""Of other libraries a program may use the functions, and would call ours instead."""

OF_ARRAYS = r"A\d+"
OF_TYPES = r"(_?(float|int8|int16|int32))+"
"""What stands in the place of a type in the names of kernels."""


def is_taken(name: str, compiler: str) -> bool:
    """Whether a name has a meaning already.

    Args:
        name: That of a function.
        compiler: The program that is asked what its libraries declare.
    """
    kernels = (re.sub("_(TYPE|LABEL)$", f"_{OF_TYPES}", one) for one in functions_of_kernels())
    patterns = "|".join((OF_STDINT, OF_ARRAYS, *kernels))
    return name in TAKEN or name in declared(compiler) or re.fullmatch(patterns, name) is not None


@cache
def declared(compiler: str) -> frozenset[str]:
    """What headers declare: functions; of those that are included macros, types and variables, too."""
    functions = re.findall(r"([A-Za-z]\w*)\s*\(", _read(compiler, (*INCLUDED, *LIBRARIES)))
    others = re.findall(r"([A-Za-z]\w*)\s*[;\[]", _read(compiler, INCLUDED))
    macros = re.findall(r"^#define\s+([A-Za-z]\w*)", _read(compiler, INCLUDED, "-dM"), re.MULTILINE)
    return frozenset((*functions, *others, *macros))


def _read(compiler: str, headers: tuple[str, ...], *flags: str) -> str:
    """The text of those headers that are there."""
    text = "".join(f"#if __has_include(<{one}>)\n#include <{one}>\n#endif\n" for one in headers)
    command = [compiler, "-std=gnu99", "-E", "-P", *flags, "-xc", "-"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout
    for _ in range(4):  # the fields of a structure are no names of their own, nor those of one in it
        found = re.sub(r"\{[^{}]*\}", " ", found)
    return found
