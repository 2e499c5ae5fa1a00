#!/usr/bin/env bash
# ./run.sh               makes .venv, installs kd_jax, runs the demo experiment (configs/demo.py)
# ./run.sh demo-video    draws videos, extracts RGB, flow and pose features, trains, predicts from one of the videos
# ./run.sh main ARGS     the same for any experiment: python -m kd_jax.main ARGS
# ./run.sh test [ARGS]   installs what the tests need, runs ruff, mypy and all tests (ARGS go to pytest)
# ./run.sh test --fast [ARGS]   leaves out the tests marked `slow`
# EXTRA=cuda, cuda12, cuda13 or tpu installs JAX for that device, e.g. EXTRA=cuda ./run.sh (setup.cfg lists the extras).
# PYTHON=/path/to/python chooses the interpreter (3.11 or newer). Running again reuses .venv.
set -euo pipefail
cd "$(dirname "$0")"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "run.sh: needs Python 3.11 or newer; name one with PYTHON=/path/to/python ./run.sh" >&2
  return 1
}

# install NAME REQUIREMENT: once per content of setup.cfg; the stamp is written last, so a broken install is repeated.
install() {
  local stamp=.venv/.kd_jax_$1 python
  [ -x .venv/bin/python ] || { python=$(find_python); "$python" -m venv .venv; }
  cmp -s setup.cfg "$stamp" && return
  echo "run.sh: installing into .venv (once, a minute or two)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$2"
  cp setup.cfg "$stamp"
}

case ${EXTRA-} in
  '' | cuda | cuda12 | cuda13 | tpu) ;;
  *)
    echo "run.sh: EXTRA=$EXTRA is unknown; use cuda (CUDA 13), cuda12, cuda13 or tpu, or leave it out for a CPU" >&2
    exit 2
    ;;
esac

case ${1-} in
  '')
    install "main${EXTRA:+_$EXTRA}" ".${EXTRA:+[$EXTRA]}"
    exec .venv/bin/python -m kd_jax.main --config=configs/demo.py
    ;;
  demo-video)
    install "video${EXTRA:+_$EXTRA}" ".[video${EXTRA:+,$EXTRA}]"
    data=data/stickfigures
    prepare() { .venv/bin/python -m "data_prep.$1" "${@:2}"; }
    extract() { prepare extract --modality="$1" --stride=8 --weights="$data/weights/$1.npz" --output="$data/$1" "${@:2}"; }
    [ -e "$data/annotations.json" ] || prepare stickfigures --output="$data"
    extract rgb --videos="$data/videos"
    extract flow --videos="$data/videos"
    extract pose --skeletons="$data/skeletons" --fps=15
    [ -e "$data/records" ] || prepare build --dataset=custom --output="$data/records" --fps=15 \
      --annotations="$data/annotations.json" --classes="$data/classes.txt" \
      --features=rgb="$data/rgb" --features=flow="$data/flow" --features=pose="$data/pose"
    .venv/bin/python -m kd_jax.main --config=configs/stickfigures.py
    exec .venv/bin/python -m kd_jax.predict --run=workdir/stickfigures/augmented_rgb \
      --video="$data/videos/figure_043.mp4" --encoder_weights="$data/weights/rgb.npz" \
      --annotations="$data/annotations.json" --output=workdir/stickfigures/figure_043
    ;;
  main)
    install "main${EXTRA:+_$EXTRA}" ".${EXTRA:+[$EXTRA]}"
    shift
    exec .venv/bin/python -m kd_jax.main "$@"
    ;;
  test)
    install test '.[test]'
    shift
    if [ "${1-}" = --fast ]; then
      shift
      set -- -m 'not slow' "$@"
    fi
    .venv/bin/python -m ruff check .
    .venv/bin/python -m ruff format --check .
    .venv/bin/python -m mypy
    exec .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal "$@"
    ;;
  *)
    echo "run.sh: unknown command '$1'; use ./run.sh, ./run.sh demo-video, ./run.sh main or ./run.sh test" >&2
    exit 2
    ;;
esac
