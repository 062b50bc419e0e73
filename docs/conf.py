"""Settings of the documentation site: `sphinx-build -W docs build/docs`."""

import re

import ddpm_jax

project = "ddpm_jax"
author = "the ddpm_jax authors"
version = release = ddpm_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md"]  # index.rst includes it
html_theme = "furo"
html_title = f"ddpm_jax {version}"
html_static_path = []

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links such as data.md#labels, as on GitHub
default_role = "code"
smartquotes = False  # strings in docstrings are to be copied

autodoc_typehints = "none"  # the docstrings have shapes and ranges, which types do not say
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Differs", "notes_style")]

_CODE = re.compile(r"(`[^`]*`)")


def _as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`: what reStructuredText would take for markup is escaped."""
    found, in_code, begins = [], False, False
    for line in lines:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text in ("Example:", "Examples:"):
            begins, in_code = True, False
            found.append(line)
            continue
        if begins and text:
            begins = False
            if not text.startswith(">>>"):
                in_code, code_indent = True, indent
                found += [" " * indent + ".. code-block:: python", ""]
        if in_code and text and indent < code_indent:
            in_code = False
        if in_code:
            found.append(f"    {line}" if text else "")
        elif text.startswith((">>>", "...")):
            found.append(line)
        else:
            parts = _CODE.split(line)
            plain = (re.sub(r"([*|\\])|_(?=\W|$)", lambda m: "\\" + m[0], part) for part in parts[::2])
            code = [f"`{part}`" for part in parts[1::2]] + [""]
            plain = ("\\ " + part if i and part[:1].isalnum() else part for i, part in enumerate(plain))  # `code`s
            found.append("".join(a + b for a, b in zip(plain, code, strict=True)))
    lines[:] = found


def _without_links_to_the_readme(app, docname, source):
    """The README of the repository is no page of the site."""
    source[0] = re.sub(r"\[([^\]]*)\]\(\.\./README\.md[^)]*\)", r"\1", source[0])


def setup(app):
    app.connect("source-read", _without_links_to_the_readme)
    # Before napoleon, which has the default priority of 500.
    app.connect("autodoc-process-docstring", _as_rst, priority=100)
