#!/bin/sh
# Everything that waits for a GPU, in one command: the tests, then the benchmark, each with a time limit of its own.
#
#     sh benchmarks/gpu.sh [FOLDER FOR RESULTS]
#
# It needs torch, triton, numpy and pytest (with pytest-xdist: twelve tests at a time); nothing has to be installed from
# this folder. PYTHON names the interpreter, TESTS_SECONDS and BENCHMARK_SECONDS the limits.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
mkdir -p "$results"
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1
unset TRITON_INTERPRET

at_once=""
"$python" -c "import xdist" 2>/dev/null && at_once="-n ${WORKERS:-12}"
timeout "${TESTS_SECONDS:-600}" "$python" -m pytest -p no:cacheprovider -q $at_once -m gpu \
    --junitxml "$results/gpu-tests.xml" tests/kernels/test_gpu_device.py
tested=$?

timeout "${BENCHMARK_SECONDS:-480}" "$python" benchmarks/scan.py --device cuda --minutes "${MINUTES:-7}" \
    ${1:+--json "$results/scan-gpu.json"}
measured=$?

echo "tests: $tested, benchmark: $measured (0 is well, 124 ran out of time)"
[ "$tested" -eq 0 ] && [ "$measured" -eq 0 ]
