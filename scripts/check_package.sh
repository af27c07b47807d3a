#!/usr/bin/env bash
# Build the sdist and the wheel, install the wheel in an empty environment, and use it outside of this checkout.
#
#     bash scripts/check_package.sh                      # with the newest Python here
#     UV_PYTHON=3.12 bash scripts/check_package.sh
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "build: the wheel of the sdist is that of the checkout, and both hold the files of git"
uv build --quiet --wheel --out-dir "$work/from_checkout"
uv build --quiet --out-dir "$work/dist" # the sdist, and the wheel of it
for wheel in "$work"/{from_checkout,dist}/*.whl; do
    python3 -m zipfile -e "$wheel" "${wheel%/*}/wheel"
done
diff -r "$work/from_checkout/wheel" "$work/dist/wheel"
# conf and recipes lie within framework, which links to them.
git ls-files --cached --others --exclude-standard | grep -v '^\.ci/' |
    sed -E '/^framework\/(conf|recipes)$/d; s#^(conf|recipes)/#framework/&#' | LC_ALL=C sort >"$work/files"
diff <(grep '^framework/' "$work/files") <(cd "$work/dist/wheel" && find . -type f -not -path './*.dist-info/*' |
    sed 's#^\./##' | LC_ALL=C sort)
diff <(echo PKG-INFO | LC_ALL=C sort - "$work/files") <(tar -tzf "$work"/dist/*.tar.gz | sed 's#^[^/]*/##' | LC_ALL=C sort)

echo "install: in an empty environment"
uv venv --quiet "$work/env"
uv pip install --quiet --python "$work/env" "$work"/dist/*.whl
unset PYTHONPATH
export PATH="$work/env/bin:$PATH"

# A project whose own files have the names of ours.
cp -r docs/example "$work/project"
cd "$work/project"
mkdir recipes
cat >data.py <<'EOF'
from framework.recipes.data import toy_regression
EOF
cat >recipes/models.py <<'EOF'
from torch import nn


class Line(nn.Linear):
    def __init__(self, input_shape, num_outputs):
        super().__init__(*input_shape, num_outputs)
EOF
quiet=(trainer.enable_progress_bar=false epochs=2)

echo "use: version, help, a run, its test, its predictions"
[ "$(proxtrain --version)" = "proxtrain $(cd "$checkout" && sed -n 's/__version__ = "\(.*\)"/\1/p' framework/_version.py)" ]
proxtrain --help | grep sparse_linear >/dev/null
proxtrain "${quiet[@]}" hydra.run.dir=toy >toy.txt
proxtrain-test toy | grep test/loss >/dev/null
printf '%s\n' 0.5 1.5 >new.csv
proxtrain-predict toy new.csv | grep '2 predictions in new_predictions.csv' >/dev/null

echo "use: a project of its own, by its recipe and by names"
proxtrain --config-dir conf recipe=spikes "${quiet[@]}" hydra.run.dir=spikes >spikes.txt
proxtrain data=custom data._target_=data.toy_regression model=custom model._target_=recipes.models.Line \
    "${quiet[@]}" hydra.run.dir=line >line.txt
proxtrain-test line | grep test/loss >/dev/null
python - <<'EOF'
import framework
import recipes.models

assert "site-packages" in framework.__file__, framework.__file__
assert isinstance(framework.load("line").network, recipes.models.Line)
assert type(framework.load("toy").network).__module__ == "framework.recipes.networks"
assert type(framework.load("spikes")).__name__ == "Deconvolution"
EOF
echo "the package of $(python --version) works"
