#!/bin/sh
# The C code under AddressSanitizer and UndefinedBehaviorSanitizer, and every warning an error.
# Builds in build/native-test, leaves the installed extension alone, and runs the kernels' tests on it. GCC on Linux.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
CC=${CC:-gcc}
build=$PWD/build/native-test
include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
mkdir -p "$build"

common="-std=c11 -Wall -Wextra -Werror -fno-math-errno -fno-trapping-math -fPIC -shared -DPy_LIMITED_API=0x030B0000"
# Once as it ships: some warnings need the optimiser.
"$CC" $common -O3 -isystem "$include" native/*.c -o "$build/optimised.so"
"$CC" $common -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -isystem "$include" native/*.c -o "$build/_native.abi3.so"

# Leaks are not looked for: CPython keeps what it has until the end. Its own allocator would hide overruns.
# The shared fixtures need PyTorch, which these tests do not; the sanitisers write to the real stderr.
check() {
    LD_PRELOAD=$("$CC" -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
        PYTHONMALLOC=malloc OMP_NUM_THREADS=1 "$PYTHON" "$build/check.py" "$build/_native.abi3.so" \
        -q --noconftest --capture=sys -p no:cacheprovider "$@"
}
cat >"$build/check.py" <<'PYTHON_END'
import ctypes
import importlib.util
import sys

path, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("memdec_edge._native", path)
sys.modules["memdec_edge._native"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import pytest

from memdec_edge.mixture import kernels

assert kernels.mix is module.mix and ctypes.CDLL(path).__asan_init, "not the sanitised build"
print("testing", path, "variants", *module.variants(), flush=True)
sys.exit(pytest.main(arguments))
PYTHON_END

# Two processes at once.
check tests/mixture/test_mixing.py tests/mixture/test_verify.py tests/mixture/test_online.py "$@" &
check tests/mixture/test_sampling.py tests/mixture/test_sparse.py tests/mixture/test_match.py \
    tests/llama/test_mixture_sampler.py tests/llama/test_mixture_sampler_online.py \
    tests/llama/test_tap.py::test_only_the_wanted_name_is_asked_for \
    tests/llama/test_tap.py::test_rows_beyond_the_buffer_are_counted_and_not_written "$@"
wait $!
