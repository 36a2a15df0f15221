"""The page's Markdown: text becomes nodes, the same ones however it was cut, quickly, and never markup."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lib_mlx.server.web

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = (Path(lib_mlx.server.web.__file__).parent / "markdown.js").read_text(encoding="utf-8")
RENDER = """source => {
    globalThis.markdown = new Function("copyText", source + "; return markdown;")(() => {});
    globalThis.render = (pieces) => {
        const parent = document.createElement("div");
        const renderer = markdown(parent);
        for (const piece of pieces) renderer.add(piece);
        renderer.end();
        for (const button of parent.querySelectorAll("button")) button.remove();
        for (const chunk of parent.querySelectorAll(".chunk")) chunk.replaceWith(...chunk.childNodes);
        for (const node of parent.querySelectorAll("*"))
            for (const name of ["dir", "class", "title"]) node.removeAttribute(name);
        parent.normalize();
        return parent.innerHTML.replace(/<\\/?(span|figcaption)>/g, "");
    };
}"""
LINK = '<a href="https://e.org/a" target="_blank" rel="noopener noreferrer">'


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    """An empty page that can render."""
    page = browser.new_page()
    page.evaluate(RENDER, SOURCE)
    yield page
    page.close()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("", ""),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# A *b*\n###### C", "<h3>A <em>b</em></h3><h6>C</h6>"),
        ("#no", "<p>#no</p>"),
        ("---", "<hr>"),
        (
            "*a* _b_ **c** ***d*** ~~e~~",
            "<p><em>a</em> <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <del>e</del></p>",
        ),
        ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
        ("**a *b**", "<p><strong>a *b</strong></p>"),
        ("snake_case_name, 2 * 3 * 4, *open", "<p>snake_case_name, 2 * 3 * 4, *open</p>"),
        (r"\*a\* \`b\` \<", "<p>*a* `b` &lt;</p>"),
        ("`a*b*` ``c`d`` ` e ` `open", "<p><code>a*b*</code> <code>c`d</code> <code>e</code> `open</p>"),
        (
            "- a\n- b\n  - c\n- d\n  more",
            "<div><ul><li><div>a</div></li><li><div>b</div><ul><li><div>c</div></li></ul></li><li><div>d\nmore</div></li></ul></div>",
        ),
        ("3. a\n4) b", '<div><ol start="3"><li><div>a</div></li><li><div>b</div></li></ol></div>'),
        ("> a\n> - b", "<blockquote><p>a</p><div><ul><li><div>b</div></li></ul></div></blockquote>"),
        (
            "| a | b |\n|--|:-:|\n| `1` | 2\\|3 |",
            "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td><code>1</code></td><td>2|3</td></tr></tbody></table></div>",
        ),
        ("```py\nif a:\n  *b*\n```\nc", "<figure>py<pre><code>if a:\n  *b*\n</code></pre></figure><p>c</p>"),
        ("  ~~~\n  a\n    b\n~~~~", "<figure>code<pre><code>a\n  b\n</code></pre></figure>"),
        ("```\na\n``\n~~~\n", "<figure>code<pre><code>a\n``\n~~~\n</code></pre></figure>"),
        ("````\n```\n````", "<figure>code<pre><code>```\n</code></pre></figure>"),
        ("[a *b*](https://e.org/a)", f"<p>{LINK}a <em>b</em></a></p>"),
        ("see https://e.org/a.", f"<p>see {LINK}https://e.org/a</a>.</p>"),
        ("![a cat](https://e.org/a)", f"<p>{LINK}image: a cat</a></p>"),
        ('[a](https://e.org/a "b")', f"<p>{LINK}a</a></p>"),
    ],
)
def test_what_is_understood(page: Any, text: str, html: str) -> None:
    """Headings, lists, quotes, tables, code, emphasis and links; what is none of these is text."""
    assert page.evaluate("text => render([text])", text) == html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](JavaScript:alert(1))",
        "[a](java\tscript:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "[a](//e.org/a)",
        "[a](file:///etc/passwd)",
        '[a](https://e.org/"onmouseover=alert(1)//)',
        "![a](x:y)",
        "```<script>\n</code></pre><script>alert(1)</script>\n```",
        "| <b> | <i> |\n|---|---|\n| <script> | ![](javascript:1) |",
        "`<script>`",
        "# <script>",
        "&lt;script&gt;",
    ],
)
def test_it_never_becomes_markup(page: Any, text: str) -> None:
    """Whatever is written, there are no elements but those of the renderer, no handlers, no links but to the web."""
    problems = page.evaluate(
        """text => {
            const parent = document.createElement("div");
            markdown(parent).add(text).end();
            const known = "P CODE PRE FIGURE FIGCAPTION BUTTON SPAN A DIV TABLE THEAD TBODY TR TH TD H3".split(" ");
            return [...parent.querySelectorAll("*")].filter((node) =>
                !known.includes(node.tagName) ||
                [...node.attributes].some(({ name }) => name.startsWith("on") || name === "style" || name === "src") ||
                (node.tagName === "A" && !/^https?:/.test(node.href))
            ).map((node) => node.outerHTML);
        }""",
        text,
    )
    assert problems == []
    if "https" not in text:
        assert "<a" not in page.evaluate("text => render([text])", text)


def test_characters_that_deceive_are_shown(page: Any) -> None:
    """Those that reorder or hide text stand there by number; joiners and marks of real scripts stay."""
    assert page.evaluate("text => render([text])", "a\u202eb\u2066c\u200bd\x00\x1b") == (
        "<p>aU+202EbU+2066cU+200BdU+0000U+001B</p>"
    )
    plain = "שלום \u200f \u200e 👩\u200d💻 e\u0301"
    assert page.evaluate("text => render([text])", plain) == f"<p>{plain}</p>"


def test_it_is_the_same_however_it_is_cut(page: Any) -> None:
    """Pieces of any length, as they come in a stream, give what the whole text gives."""
    pick = random.Random(1)
    parts = ["*", "**", "_", "`", "```", "\n", "\n\n", "- ", "1. ", "# ", "> ", "| a |", "|---|", "a", "b c", " ", "😀"]
    parts += ["[x](http://a)", "~~~", "x" * 50, "    ", "---", "\n```\n", "y " * 9000, "z" * 17000]
    weights = [20] * (len(parts) - 2) + [1, 1]
    cases = []
    for _ in range(800):
        text = "".join(pick.choices(parts, weights, k=pick.randint(1, 40)))
        cuts = sorted(pick.sample(range(len(text) + 1), pick.randint(0, min(len(text), 12))))
        cases.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    different = page.evaluate("cases => cases.filter((pieces) => render(pieces) !== render([pieces.join('')]))", cases)
    assert different == []


SLOW = {
    "emphasis": "*a " * 6000,
    "marks": "*" * 16000,
    "strikes": "~" * 15000 + "`",
    "ticks": "".join("`" * (n % 50 + 1) + " " for n in range(2000)),
    "brackets": "[" * 16000,
    "links": "[a](" * 4000,
    "link with spaces": "[a](" + " " * 15000 + "x",
    "a word": "x" * 1_000_000,
    "words": "word " * 200_000,
    "lines": "a line\n" * 150_000,
    "code": "```\n" + "a line of code\n" * 70_000,
    "a line of code": "```\n" + "x" * 1_000_000,
    "spaces of code": "```\n" + " " * 1_000_000,
    "quotes": ">" * 16000,
    "depth": "\n".join(" " * (2 * n) + "- a" for n in range(150)),
    "fences": "```\n" * 5000,
    "items": "- a\n" * 30_000,
    "rows": "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 20_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_text_is_slow(page: Any, name: str) -> None:
    """A megabyte, or text made to be slow, takes no piece of a stream longer than a moment."""
    worst = page.evaluate(
        """text => {
            const renderer = markdown(document.createElement("div"));
            let worst = 0;
            for (let at = 0; at < text.length; at += 1000) {
                const begun = performance.now();
                renderer.add(text.slice(at, at + 1000));
                worst = Math.max(worst, performance.now() - begun);
            }
            return worst;
        }""",
        SLOW[name],
    )
    assert worst < 500
