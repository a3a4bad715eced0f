#!/bin/sh
# Everything that throws bad input at the service: `make fuzz`. The report is build/fuzz/report.txt.
# FUZZ_SECONDS  for each coverage-guided target (default 60)
# FUZZ_FILES    damaged files through decode (default 12000)
set -u
cd "$(dirname "$0")/../.."
python=$PWD/build/fuzz/bin/python
report=$PWD/build/fuzz/report.txt
export PYTHONPATH="$PWD"
failed=
: > "$report"

step() {
    name=$1
    shift
    echo "== $name" | tee -a "$report"
    if "$@" > build/fuzz/step.txt 2>&1; then outcome=passed; else outcome=FAILED; failed="$failed $name"; fi
    tail -n 25 build/fuzz/step.txt | tee -a "$report"
    echo "-- $name $outcome" | tee -a "$report"
}

guided() { # in a folder of its own, where Atheris leaves the input of a crash
    mkdir -p build/fuzz/crashes
    (cd build/fuzz/crashes && "$python" -m tests.fuzz.guided "$1" -max_total_time="${FUZZ_SECONDS:-60}" -print_final_stats=1)
}

step "damaged files" "$python" -m tests.fuzz.damage --files "${FUZZ_FILES:-12000}"
step "requests by the schema" "$python" -m tests.fuzz.schema
if "$python" -c 'import atheris' 2>/dev/null; then
    for target in header decode multipart; do step "coverage-guided $target" guided "$target"; done
else
    echo "== coverage-guided: SKIPPED, Atheris has no build for this Python and system" | tee -a "$report"
fi
[ -z "$failed" ] || { echo "fuzz: found something:$failed (crashes are in build/fuzz/crashes)"; exit 1; }
echo "fuzz: nothing found; report in build/fuzz/report.txt"
