"""The README's programs run as they stand."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_programs_of_the_readme_run_and_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, sparse = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"__name__": "readme"}
    exec(compile(first, "README.md", "exec"), names)
    loss, stopped_because = capsys.readouterr().out.splitlines()[-1].split()
    assert float(loss) < 2
    assert stopped_because == "max_epochs"

    # It goes on where the first ends, with its imports.
    exec(compile(sparse, "README.md", "exec"), names)
    found, support, stopped_because = re.fullmatch(
        r"tensor\((.*)\) (\[.*\]) (.*)", capsys.readouterr().out.splitlines()[-1]
    ).groups()
    assert found == support
    assert stopped_because.startswith("stationarity: the gap is")
