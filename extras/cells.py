"""A script in percent cells as one page: its prose, its code, and what each piece of code made.

`# %%` begins a cell of code, `# %% [markdown]` a cell of prose, as VS Code, Spyder and Jupyter (through jupytext) know
it. So extras/tour.py is a notebook there, and here a page: its cells are run in order, in one namespace.

    show      puts a picture or a piece of HTML below the cell that calls it: in a notebook, or on the page
    main      the command: runs the cells of a script, writes the page
"""

import argparse
import contextlib
import io
import itertools
import keyword
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

from extras import page, plots, plumbing

TAG = 'tags=["{}"]'  # in the first line of a cell; "shapes": belongs to that table, "fold": code on demand
WORDS = "|".join(keyword.kwlist)
CODE = re.compile(r'(?P<comment>#.*)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<keyword>\b(?:%s)\b)' % WORDS)
INLINE = (  # what may stand within a line of prose, after < and & are escaped
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<!\w)\*([^*]+)\*"), r"<em>\1</em>"),
    (re.compile(r"\[([^]]+)\]\(([^)]+)\)"), r'<a href="\2">\1</a>'),
)
STYLE = """
body { max-width: 62rem; }
@media (min-width: 80rem) {
  body { max-width: 78rem; padding-left: 17rem; }
  nav { position: fixed; top: 1.5rem; width: 14rem; margin-left: -15.5rem; max-height: 95vh; overflow-y: auto; }
}
nav ol { list-style: none; padding: 0; margin: 0.5rem 0; font-size: 0.9rem; }
nav li { margin: 0.3rem 0; }
nav a { text-decoration: none; }
h2 { border-top: 1px solid var(--line); padding-top: 1.5rem; }
p, ul, ol, blockquote { max-width: 44rem; }
blockquote { margin: 1rem 0; padding: 0.1rem 1rem; border-left: 4px solid var(--link); background: var(--card); }
pre.code { border-left: 4px solid var(--line); font-size: 0.8rem; }
pre.made { background: none; border: none; padding: 0 0 0 1.1rem; margin-top: -0.4rem; color: var(--ink); }
pre i { font-style: normal; }
summary { color: var(--muted); cursor: pointer; font-size: 0.9rem; }
i.comment { color: var(--muted); }
i.string { color: var(--true); }
i.keyword { color: var(--link); }
figure { margin: 1rem 0; }
figcaption { color: var(--muted); font-size: 0.925rem; max-width: 46rem; }
svg.drawing { max-width: 100%; height: auto; }
body:has(#code:not(:checked)) :is(pre.code, details) { display: none; }
"""
MADE = []  # what the present cell has made so far: pieces of HTML, and plain text that it printed


class Cell(NamedTuple):
    head: str  # its first line, which begins with # %%
    text: str
    line: int  # number of the text's first line in the file

    @property
    def is_prose(self):
        return "[markdown]" in self.head


def split(source):
    """A script -> its cells. What stands before the first one, such as the docstring, is none."""
    cells, lines = [], source.splitlines()
    begins = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    for begin, end in zip(begins, [*begins[1:], len(lines)]):
        cell = Cell(lines[begin], "\n".join(lines[begin + 1 : end]).strip("\n"), begin + 2)
        if cell.is_prose:
            cell = cell._replace(text=re.sub("(?m)^# ?", "", cell.text))
        cells.append(cell)
    return cells


def in_notebook():
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def show(piece, caption=""):
    """A matplotlib figure or a piece of `page`, with a sentence below it, which also serves who cannot see it"""
    html = piece if isinstance(piece, page.Html) else page.picture(piece, re.sub("[`*]", "", caption))
    if caption:
        html = page.Html(f"<figure>{html}<figcaption>{inline(caption)}</figcaption></figure>")
    if in_notebook():
        from IPython.display import HTML, display

        display(HTML(html))
    else:
        MADE.append(html)


def drawing(path):
    """A drawing of our own (an SVG file) -> a piece to show; it follows the page's light or dark"""
    return page.Html(Path(path).read_text(encoding="utf-8").replace("<svg ", '<svg class="drawing" ', 1))


# --- prose and code to HTML ------------------------------------------------------------------------------------------


def inline(text):
    text = page.escape(text)
    for pattern, html in INLINE:
        text = pattern.sub(html, text)
    return text


def prose(text):
    """As much of Markdown as the tour needs: headings, paragraphs, lists, tables, quotes, indented code"""
    return "\n".join(block(lines.strip("\n")) for lines in re.split(r"\n\s*\n", text) if lines.strip())


def block(text):
    lines = text.split("\n")
    if heading := re.match(r"(#+) (.*)", text):
        level, title = len(heading[1]), inline(heading[2])
        return f'<h{level} id="{anchor(heading[2])}">{title}</h{level}>'
    if text.startswith("    "):
        return f"<pre>{page.escape(re.sub('(?m)^    ', '', text))}</pre>"
    if text.startswith("|"):
        header, _, *rows = ([page.Html(inline(cell.strip())) for cell in line.strip("|").split("|")] for line in lines)
        return page.table(header, rows)
    if text.startswith("> "):
        return f"<blockquote><p>{inline(re.sub('(?m)^> ?', '', text))}</p></blockquote>"
    for mark, kind in ((r"- ", "ul"), (r"\d+\. ", "ol")):
        if re.match(mark, text):
            items = [inline(re.sub(mark, "", item, count=1)) for item in re.split(rf"\n(?={mark})", text)]
            return f"<{kind}><li>{'</li><li>'.join(items)}</li></{kind}>"
    return f"<p>{inline(text)}</p>"


def anchor(title):
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def code(cell):
    """A cell of code with its comments, strings and keywords marked"""
    text = cell.text
    pieces, end = [], 0
    for match in CODE.finditer(text):
        pieces += [page.escape(text[end : match.start()]), f'<i class="{match.lastgroup}">{page.escape(match[0])}</i>']
        end = match.end()
    html = f'<pre class="code">{"".join(pieces)}{page.escape(text[end:])}</pre>'
    return f"<details><summary>code</summary>{html}</details>" if TAG.format("fold") in cell.head else html


# --- running the cells -----------------------------------------------------------------------------------------------


class Printed(io.StringIO):
    """Takes what is printed to the page, and to where it went before"""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def write(self, text):
        MADE.append(text)
        return self.stream.write(text)


def run(cell, path, space):
    """Run a cell of code in a namespace -> HTML of what it printed and showed"""
    MADE.clear()
    with contextlib.redirect_stdout(Printed(sys.stdout)):
        exec(compile("\n" * (cell.line - 1) + cell.text, path, "exec"), space)  # so that errors name the right line
    pieces = []
    for is_html, group in itertools.groupby(MADE, lambda piece: isinstance(piece, page.Html)):
        text = "".join(group)
        pieces.append(text if is_html else f'<pre class="made">{page.escape(text.rstrip())}</pre>')
    return "\n".join(pieces)


def run_all(cells, path):
    """Cells -> the body of a page"""
    space, body, started = {"__name__": "cells"}, [], time.monotonic()
    for number, cell in enumerate(cells, 1):
        body += [prose(cell.text)] if cell.is_prose else [code(cell), run(cell, path, space)]
        plumbing.show_progress("cells", number, len(cells), started)
    return "\n".join(body)


def contents(cells):
    """The chapters, as links"""
    titles = [title for cell in cells if cell.is_prose for title in re.findall("(?m)^## (.*)", cell.text)]
    links = "".join(f'<li><a href="#{anchor(title)}">{inline(title)}</a></li>' for title in titles)
    switch = '<label><input type="checkbox" id="code" checked> show code</label>'
    return f"<nav><b>Chapters</b><ol>{links}</ol>{switch}</nav>"


def main(path, arguments=None):
    """Run the cells of the script `path`, write a page, and end the program"""
    name = Path(path).stem
    parser = argparse.ArgumentParser(
        prog=f"python -m extras.{name}", description="Run the cells of a script, write a page."
    )
    parser.add_argument("--out", metavar="FILE", default=f"{name}.html", help=f"default: {name}.html")
    parser.add_argument("--shapes", action="store_true", help="nothing but the table of shapes, in seconds")
    args = parser.parse_args(arguments)
    source = Path(path).read_text(encoding="utf-8")
    cells = split(source)
    with plumbing.one_line_errors("nothing was written, begin again"):
        if args.shapes:
            space = {"__name__": "cells"}
            for cell in cells:
                if TAG.format("shapes") in cell.head:
                    exec(compile(cell.text, path, "exec"), space)
        else:
            plots.figure_class()  # without matplotlib, stop before the work
            plumbing.check_out_file(args.out)
            started = time.monotonic()
            body = run_all(cells, path)
            title = re.search("(?m)^# (.*)", next(cell.text for cell in cells if cell.is_prose))[1]
            page.write(args.out, page.page(title, f"{contents(cells)}\n<main>\n{body}\n</main>", STYLE))
            size = Path(args.out).stat().st_size / 1e6
            print(f"{args.out}: {size:.1f} MB, {len(cells)} cells in {time.monotonic() - started:.0f} s")
    sys.exit()
