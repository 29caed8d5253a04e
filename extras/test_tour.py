"""The tour: its cells as a page; and the whole of it, with a tiny network on a few clips"""

import json
import re

import numpy as np
import pytest

from extras import cells, page, plots, toy
from extras.test_processes import Program
from test_avsed import HERE, run, small  # noqa: F401

SCRIPT = '''"""No cell"""
import nothing_that_exists

# %% [markdown]
# # The *title*
#
# A paragraph with `a < b`, **bold** words
# and a [link](x.html).
#
# ## One
#
# | a | b |
# |---|---|
# | 1 | `x` |
#
# - first
#   goes on
# - second
#
#     indented < code
#
# > said

# %%
x = 2  # a comment
print("x < 3:", x)
show(page.Html("<b>piece</b>"), "what `it` is")
print("after")

# %% tags=["fold"]
if x:
    print(f"{x + 1}")
'''


def test_cells_prose_and_code():
    found = cells.split(SCRIPT)
    assert [(cell.is_prose, cell.line) for cell in found] == [(True, 5), (False, 25), (False, 31)]
    html = cells.prose(found[0].text)
    assert '<h1 id="the-title">The <em>title</em></h1>' in html and '<h2 id="one">One</h2>' in html
    words = "<p>A paragraph with <code>a &lt; b</code>, <b>bold</b> words\nand a <a href=\"x.html\">link</a>.</p>"
    assert words in html and "<ul><li>first\n  goes on</li><li>second</li></ul>" in html
    assert "<pre>indented &lt; code</pre>" in html and "<blockquote><p>said</p></blockquote>" in html
    assert '<th scope="col" class="number">a</th>' in html and "<code>x</code></td>" in html
    marked = '<i class="comment"># a comment</i>\nprint(<i class="string">&quot;x &lt; 3:&quot;</i>, x)'
    assert marked in cells.code(found[1]) and "<details>" not in cells.code(found[1])
    assert '<i class="keyword">if</i> x' in cells.code(found[2]) and "<details>" in cells.code(found[2])
    assert '<a href="#one">One</a>' in cells.contents(found)


def test_what_a_cell_makes_stands_below_it_in_order(capsys):
    space, (_, first, second) = {"show": cells.show, "page": page}, cells.split(SCRIPT)
    made = cells.run(first, "script.py", space)
    figure = "<figure><b>piece</b><figcaption>what <code>it</code> is</figcaption></figure>"
    assert made.split("\n") == ['<pre class="made">x &lt; 3: 2</pre>', figure, '<pre class="made">after</pre>']
    assert cells.run(second, "script.py", space) == '<pre class="made">3</pre>'
    assert capsys.readouterr().out == "x < 3: 2\nafter\n3\n"  # it is printed as well
    with pytest.raises(ZeroDivisionError) as error:
        cells.run(cells.Cell("# %%", "\n1 / 0", 7), "script.py", space)
    assert error.traceback[-1].lineno + 1 == 8


def test_a_script_becomes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "figure_class", lambda: None)
    script, out = tmp_path / "script.py", tmp_path / "new.html"
    script.write_text(SCRIPT.replace("x = 2", "from extras import page\nfrom extras.cells import show\nx = 2"))
    with pytest.raises(SystemExit) as stop:
        cells.main(script, ["--out", str(out)])
    text = out.read_text()
    assert not stop.value.code and "<title>The *title*</title>" in text and '<pre class="made">3</pre>' in text
    assert f"{out}: 0.0 MB, 3 cells" in capsys.readouterr().out
    monkeypatch.setattr(plots, "figure_class", lambda: (_ for _ in ()).throw(plots.InputError("needs matplotlib")))
    with pytest.raises(SystemExit) as stop:
        cells.main(script, ["--out", str(tmp_path / "other.html")])
    assert stop.value.code == 2 and capsys.readouterr().err == "error: needs matplotlib\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.html", "script.py"]


def test_the_table_of_shapes_needs_nothing(tmp_path):
    hide = "import sys; sys.modules['matplotlib'] = None; import runpy; sys.argv = ['tour', '--shapes']"
    code = f"{hide}; sys.path.insert(0, {str(HERE)!r}); runpy.run_module('extras.tour', run_name='__main__')"
    program = Program("-c", code, cwd=tmp_path)
    printed, errors = program.communicate()
    assert program.returncode == 0 and not list(tmp_path.iterdir()), errors
    shapes = dict(re.findall(r"(?m)^(.*?)  +(\(.*\))$", printed))
    # Table 3: three stacks halve time and frequency, three more frequency only; then 64 frames, and the token
    assert [shapes[f"CNN, stack {k}"] for k in (1, 3, 6)] == ["(1, 16, 256, 32)", "(1, 64, 64, 8)", "(1, 128, 64, 1)"]
    assert shapes["log-mel"] == "(1, 512, 64)" and shapes["decoder, all 3 blocks"] == "(1, 65, 128)"
    assert shapes["logits of the output frames"] == "(1, 64, 10)" and shapes["logits of the clip"] == "(1, 10)"


def test_the_whole_tour(tmp_path, monkeypatch, small):
    pytest.importorskip("matplotlib")
    few = {"strong": 14, "weak": 20, "unlabelled": 4, "validation": 4, "public": 6}
    monkeypatch.setattr(toy, "CLIPS", {"toy": few})
    monkeypatch.chdir(tmp_path)
    drawn = []  # the pictures themselves take longer than all else

    def picture(figure, alt):
        drawn.append(figure)
        return page.Html(f'<img class="picture" alt="{page.escape(alt)}">')

    monkeypatch.setattr(page, "picture", picture)
    grids, plot_grid = [], plots.plot_grid
    monkeypatch.setattr(plots, "plot_grid", lambda *arguments: grids.append(arguments) or plot_grid(*arguments))
    run("--visual", "openl3", "--epochs", 1, "--batches", 2, "--batch-size", 2, 2, 2)
    out, source = tmp_path / "tour.html", (HERE / "extras/tour.py").read_text(encoding="utf-8")
    assert source.count('"Ytoypubl0073_') == 1  # one of the few clips instead
    (tmp_path / "tour.py").write_text(source.replace('"Ytoypubl0073_', '"Ytoypubl0000_'), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        cells.main(tmp_path / "tour.py", ["--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert not stop.value.code
    assert re.findall(r"<h2 id=[^>]*>(\d+)\.", text) == [str(n) for n in range(1, 11)]
    assert len(drawn) >= 16 and text.count("<audio") == 1 and '<svg class="drawing"' in text
    assert '<pre class="made">' in text and "model: runs/toy-transformer-openl3-0/model.pt" in text
    explained = " ".join(re.findall("<li><b>([^<]*)</b>", text))
    words = "strong weak log-mel token memory cross-attention teacher consistency mixup median micro collar alpha_st"
    assert all(word in explained for word in words.split())
    rows = re.findall(r"<tr><td>(Dog, [^<]*)</td><td>(\w+)</td><td>(\w+)</td><td>(\w+)", text)
    # truth: 2 to 5 s; collars 0.2 and 0.6 s; PSDS1 and PSDS2 ask for 0.7 and 0.1 of what is found
    by_hand = {
        "Dog, 2.15–5.50": ("right", "right", "right"),
        "Dog, 2.25–5.00": ("wrong", "right", "right"),
        "Dog, 2.20–3.20": ("wrong", "right", "right"),
        "Dog, 1.00–6.50": ("wrong", "wrong", "right"),
        "Dog, 7.20–8.80": ("wrong", "wrong", "wrong"),
    }
    [(grid, sizes, limits, chosen, _)] = grids  # what tuning chose is marked: nothing is better
    assert grid.shape == (len(sizes), len(limits)) and grid[chosen] == np.nanmax(np.append(grid, 0))
    assert "+0.15 s (collar 0.20); +0.50 s (collar 0.60); 0.85 of it in its class" in text  # 2.85 s of 3.35
    teacher = re.findall(r'<td class="number">(\d)</td>(?:<td class="number">[\d.]+</td>){4}<td>(1/\d)', text)
    assert teacher == [(str(t), f"1/{t + 2}") for t in range(8)]
    scores = json.loads((tmp_path / "runs/toy-transformer-openl3-0/metrics.json").read_text())["by_weight"]["1.0"]
    [ignored] = re.findall(r"with_video, video ignored</td>(.*?)</tr>", text)
    assert ignored.count("<td") == 5 and f">{scores['with_video']['PSDS2']:.4f}<" in ignored
    assert by_hand.items() <= {name: tuple(marks) for name, *marks in rows}.items()
